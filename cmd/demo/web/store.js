// What the page knows: the markets, the account, and the figures of each recent version, for comparison.

import { instant } from './format.js';

/** How much of the past a chart can show, and how many points it keeps: older ones are thinned to the second. */
const HISTORY_MS = 16 * 60_000;
const MAX_POINTS = 6_000;
const FINE_MS = 20_000;
const TAPE = 40;
/** For how many past versions the figures are kept. */
const FIGURES = 4_096;

export const topicOf = (id) => `market:${id}`;

/**
 * A market after one more event, for the client. Price and shares are absolute; volume, holding and money are sums, which
 * only come out right when every event is applied exactly once. What a snapshot brings besides, it keeps.
 */
export function reduce(m, event, trader) {
  const d = event.data;
  if (event.type !== 'trade') return m;
  const mine = d.trader === trader ? { ...m.mine, [d.side]: m.mine[d.side] + d.shares, spent: m.mine.spent + d.cost } : m.mine;
  return { ...m, price: d.price, yes: d.yes, no: d.no, version: d.version, volume: m.volume + Math.abs(d.cost), mine };
}

export class Store {
  markets = new Map(); // id → market, in the order in which they are shown
  trader = null; // {trader, name, deposit}
  /** How many events were applied, and how many the snapshots held before they came. */
  stats = { applied: 0, skipped: 0, rereads: 0 };
  #order = [];

  /** ids are the markets, in the order in which they are shown. */
  expect(ids) {
    this.#order = ids;
  }

  /** Whether every market is there. */
  get complete() {
    return this.#order.length > 0 && this.markets.size === this.#order.length;
  }

  /** What the client shows of a market now. */
  show(id, view) {
    if (!view.state) return null;
    const offset = Number(view.cursor.slice(view.cursor.lastIndexOf(':') + 1));
    const m = this.#based(id, view.state, offset);
    this.stats.skipped += Math.max(0, offset - m.offset - m.since);
    Object.assign(m, { offset, since: 0, cursor: view.cursor });
    this.#note(m, view.state);
    return m;
  }

  /** An event has become part of a market. */
  event(id, event, state) {
    const m = this.#based(id, state, event.offset - 1);
    const d = event.data;
    m.since++;
    this.stats.applied++;
    if (event.type !== 'trade') return null;
    const at = instant(event.at);
    const mine = d.trader === this.trader?.trader;
    m.direction = Math.sign(d.price - m.price);
    m.changed = performance.now();
    m.points.push({ t: at, p: d.price });
    if (m.points.length > MAX_POINTS) thin(m);
    if (mine) m.marks.push({ t: at, p: d.price, side: d.side });
    const trade = {
      version: d.version, trader: d.trader, name: d.name, bot: d.bot, side: d.side, shares: d.shares, cost: d.cost,
      after: d.side === 'yes' ? d.price : 1_000_000 - d.price, price: d.price, at,
    };
    m.tape.push(trade);
    if (m.tape.length > TAPE) m.tape.shift();
    this.#note(m, state);
    return { market: m, trade, mine };
  }

  /** The market of a state: made anew when the state came with another snapshot. */
  #based(id, state, offset) {
    const old = this.markets.get(id);
    if (old?.base === state.history) return old;
    if (old) this.stats.rereads++;
    // A point stands at the end of its second, but not after the trade that made it.
    const latest = state.tape.length ? state.tape[state.tape.length - 1].at : Infinity;
    const tape = state.tape.map((t) => ({ ...t, price: t.side === 'yes' ? t.after : 1_000_000 - t.after }));
    const m = {
      ...state, base: state.history, offset, since: 0, cursor: '', tape,
      points: state.history.map(([second, price]) => ({ t: Math.min(second * 1000 + 999, latest), p: price })),
      marks: old?.marks ?? tape.filter((t) => t.trader === this.trader?.trader).map((t) => ({ t: t.at, p: t.price, side: t.side })),
      figures: [], changed: performance.now(), direction: 0,
    };
    this.markets.set(id, m);
    if (!old) this.markets = new Map(this.#order.filter((x) => this.markets.has(x)).map((x) => [x, this.markets.get(x)]));
    return m;
  }

  /** Takes over the figures of a state, and remembers them under its version. */
  #note(m, { version, price, yes, no, volume, mine }) {
    Object.assign(m, { version, price, yes, no, volume, mine });
    if (m.figures.at(-1)?.version === version) return;
    m.figures.push({ version, price, yes, no, volume, mineYes: mine.yes, mineNo: mine.no, mineSpent: mine.spent });
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
