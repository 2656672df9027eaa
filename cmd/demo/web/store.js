// What the page knows: the markets, the account, and the figures at each recent position, for comparison.

import { instant } from './format.js';

/** How much of the past a chart can show, and how many points it keeps: older ones are thinned to the second. */
const HISTORY_MS = 16 * 60_000;
const MAX_POINTS = 6_000;
const FINE_MS = 20_000;
const TAPE = 40;
/** For how many past positions the figures are kept. */
const FIGURES = 4_096;

export const topicOf = (id) => `market:${id}`;
export const marketOf = (topic) => topic.slice('market:'.length);

export class Store {
  markets = new Map(); // id → market, in the order in which they are shown
  trader = null; // {trader, name, deposit}

  /** Replaces markets by those of a snapshot. position(id) tells where their topics stand. */
  replace(snapshot, position) {
    for (const m of snapshot.markets) {
      const old = this.markets.get(m.id);
      // A point stands at the end of its second, but not after the trade that made it.
      const latest = m.tape?.length ? m.tape[m.tape.length - 1].at : Infinity;
      const points = (m.history || []).map(([second, price]) => ({ t: Math.min(second * 1000 + 999, latest), p: price }));
      const market = {
        ...m,
        points,
        tape: (m.tape || []).map((t) => ({ ...t, price: t.side === 'yes' ? t.after : 1_000_000 - t.after })),
        marks: old ? old.marks : [],
        figures: [],
        changed: performance.now(),
        direction: 0,
      };
      if (!old) {
        market.marks = market.tape.filter((t) => t.trader === this.trader?.trader).map((t) => ({ t: t.at, p: t.price, side: t.side }));
      }
      this.markets.set(m.id, market);
      this.note(market, position(m.id));
    }
  }

  /** Applies one trade. Price and shares are absolute; volume, holding and money are sums, which only come out right
   * when every event is applied exactly once. */
  apply(event, position) {
    const m = this.markets.get(marketOf(event.topic));
    if (!m || event.type !== 'trade') return null;
    const d = event.data;
    const at = instant(event.at);
    m.direction = Math.sign(d.price - m.price);
    m.price = d.price;
    m.yes = d.yes;
    m.no = d.no;
    m.version = d.version;
    m.volume += Math.abs(d.cost);
    const mine = d.trader === this.trader?.trader;
    if (mine) {
      m.mine[d.side] += d.shares;
      m.mine.spent += d.cost;
      m.marks.push({ t: at, p: d.price, side: d.side });
    }
    m.changed = performance.now();
    m.points.push({ t: at, p: d.price });
    if (m.points.length > MAX_POINTS) thin(m);
    const trade = {
      version: d.version, trader: d.trader, name: d.name, bot: d.bot, side: d.side, shares: d.shares, cost: d.cost,
      after: d.side === 'yes' ? d.price : 1_000_000 - d.price, price: d.price, at,
    };
    m.tape.push(trade);
    if (m.tape.length > TAPE) m.tape.shift();
    this.note(m, position);
    return { market: m, trade, mine };
  }

  /** Remembers the figures at a position: the offset applied, plus what the snapshot held beyond it. */
  note(m, position) {
    m.position = { epoch: position.epoch, offset: position.offset };
    m.figures.push({
      included: position.offset + position.pending, version: m.version, price: m.price, yes: m.yes, no: m.no,
      volume: m.volume, mineYes: m.mine.yes, mineNo: m.mine.no, mineSpent: m.mine.spent,
    });
    if (m.figures.length > FIGURES) m.figures.splice(0, FIGURES / 4);
  }

  /** Money left, what the positions are worth at the present prices, and the profit so far. */
  account() {
    let spent = 0;
    let worth = 0;
    for (const m of this.markets.values()) {
      spent += m.mine.spent;
      worth += (m.mine.yes * m.price + m.mine.no * (1_000_000 - m.price)) / 1_000_000;
    }
    const deposit = this.trader ? this.trader.deposit : 0;
    return { deposit, balance: deposit - spent, worth, profit: worth - spent };
  }
}

function thin(m) {
  const now = m.points[m.points.length - 1].t;
  const kept = [];
  for (const p of m.points) {
    if (p.t < now - HISTORY_MS) continue;
    const last = kept[kept.length - 1];
    if (last && p.t < now - FINE_MS && Math.floor(p.t / 1000) === Math.floor(last.t / 1000)) kept[kept.length - 1] = p;
    else kept.push(p);
  }
  m.points = kept.length > MAX_POINTS * 0.9 ? kept.slice(-Math.floor(MAX_POINTS / 2)) : kept;
  m.marks = m.marks.filter((x) => x.t > now - HISTORY_MS);
}

// The market maker's formula, for previews; the server decides with its own.

/** What an amount of money buys, or shares bring: {shares, money, after} or null when the maker would refuse. */
export function preview(m, side, sell, amount) {
  if (!(amount > 0)) return null;
  const b = m.liquidity;
  const q = side === 'yes' ? m.yes - m.no : m.no - m.yes;
  const p = 1 / (1 + Math.exp(-q / b));
  const n = sell ? -amount : b * Math.log1p(Math.expm1(amount / b) / p);
  const after = Math.round(1e6 / (1 + Math.exp(-(q + n) / b)));
  if (!(after >= 10_000 && after <= 990_000)) return null;
  const paid = b * Math.log1p(p * Math.expm1(n / b));
  return { shares: Math.abs(n), money: Math.abs(paid), after };
}
