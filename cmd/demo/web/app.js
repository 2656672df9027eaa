// The page: draws what the store knows, and ties client, ticket and panel together.
//
// For tests, window.__demo tells what the page shows, as data:
//   figures()  {markets: {id: {epoch, offset, version, price, yes, no, volume, mine}}, account, trader}
//   status()   {connection, stats, latency, verify}: counters, percentiles, and the result of the last comparison with
//              the database
//   select(id) shows a market

import * as api from './api.js';
import { Chart, sparkline } from './chart.js';
import { connect } from './commitcast.js';
import { $, cents, centsChange, clock, colour, duration, h, instant, money, moneyChange, moneyShort, put, reducedMotion, shares } from './format.js';
import { Panel } from './panel.js';
import { Store, reduce, topicOf } from './store.js';
import { Tap } from './tap.js';
import { Ticket } from './ticket.js';
import { Verifier } from './verify.js';

const TAPE_ROWS = 12;
/** A connection may be away for so long before the page says that what it shows is old. */
const STALE_AFTER = 1_200;

const tab = api.randomID();
const store = new Store();
const dirty = new Set();
let selected = location.hash.slice(1);
let shown = ''; // nothing yet
let spark = null;
let lastDrawn = { tape: 0, market: '' };

// ------------------------------------------------------------------------------------------------ clock

// 'at' is Postgres' clock. On this machine it is ours as well; elsewhere its offset is taken from the quickest answer.
const sameMachine = ['localhost', '[::1]'].includes(location.hostname) || location.hostname.startsWith('127.');
const clocks = { offset: 0, trip: Infinity, drift: 0 };

/** This tab's high-resolution clock can drift from the machine's: keep them together. */
function steady() {
  const apart = Date.now() + 0.5 - (performance.timeOrigin + performance.now());
  if (Math.abs(apart - clocks.drift) > 2) clocks.drift = apart;
}

async function readCheck() {
  const before = Date.now();
  const answer = await api.check();
  const trip = Date.now() - before;
  if (!sameMachine && trip <= clocks.trip + 1) {
    clocks.trip = trip;
    clocks.offset = answer.now / 1000 - (before + trip / 2);
    put($('f-clock'), `the two clocks are compared over the network, to ±${duration(trip / 2)}`);
  }
  return answer;
}

// ------------------------------------------------------------------------------------------------ client

const tap = new Tap((what) => panel.healing(what));

const feed = connect({
  url: `/v1/ws?tab=${tab}`,
  WebSocket: tap.WebSocket,
  onconnection(connection) {
    panel.connection(connection);
    showConnection();
  },
  onerror: (error) => panel.say(`${error.message[0].toUpperCase()}${error.message.slice(1)}`, 'bad'),
});

/** Follows a market: its snapshot is the server's outbox.View, each trade moves it on. */
function follow(id) {
  const topic = feed.topic(topicOf(id), {
    snapshot: `/api/markets/${id}`,
    skipped: 'reread', // an event that no frame can hold is a trade all the same
    apply: (market, event) => reduce(market, event, store.trader.trader),
    onevent(event, state) {
      const arrived = performance.timeOrigin + performance.now();
      const ms = arrived + clocks.drift + clocks.offset - instant(event.at);
      panel.received(performance.now(), tap.isReplayed(event) ? undefined : ms);
      const applied = store.event(id, event, state);
      if (applied?.mine) ticket.pushed(id, applied.trade.version, arrived);
    },
  });
  topic.subscribe((view) => {
    if (store.show(id, view)) dirty.add(id);
  });
  topics.set(id, topic);
}
const topics = new Map();

const verifier = new Verifier({
  store,
  read: readCheck,
  reread: (why) => topics.forEach((topic) => topic.reread(why)),
  onChange: (state) => {
    panel.verified(state);
    panel.render();
  },
});

const panel = new Panel({ feed, stats, verifier, tab });
function stats() {
  return { ...tap.stats, ...store.stats };
}
const announce = (text) => put($('say'), text);
const ticket = new Ticket({
  account: () => store.account(),
  topic: (id) => topics.get(id),
  onTrade: announce,
  onRefused: (text) => {
    announce(text);
    panel.say(text);
  },
});

// ------------------------------------------------------------------------------------------------ connection

let awaySince = 0;

function showConnection() {
  const { state, retryAt, reason } = feed.connection;
  const names = { idle: 'Connecting', connecting: 'Connecting', open: 'Live', waiting: 'Reconnecting', failed: 'Refused', closed: 'Closed' };
  $('connection').dataset.state = state;
  put($('connection-text'), names[state]);
  if (state === 'open') awaySince = 0;
  else awaySince ||= Date.now();
  const stale = awaySince > 0 && Date.now() - awaySince > STALE_AFTER;
  document.body.classList.toggle('stale', stale && store.markets.size > 0);
  $('offline').hidden = !stale;
  if (!stale) return;
  if (state === 'failed') {
    put($('offline-title'), 'The server refuses this page.');
    put($('offline-text'), `${reason}. Reload to try again.`);
    return;
  }
  put($('offline-title'), navigator.onLine ? 'No connection.' : 'You are offline.');
  const wait = retryAt - Date.now();
  const next = wait > 300 ? `trying again in ${Math.ceil(wait / 1000)} s` : 'connecting…';
  put($('offline-text'), store.markets.size > 0 ? `Prices are those of ${clock(awaySince)}; ${next}` : `${next[0].toUpperCase()}${next.slice(1)}`);
}

setInterval(() => {
  steady();
  showConnection();
}, 500);

// ------------------------------------------------------------------------------------------------ markets

const tiles = new Map();

function makeTile(m) {
  const t = {
    question: h('span', { class: 'tile-question' }),
    yes: h('b', { class: 'yes' }), no: h('b', { class: 'no' }), volume: h('span', { class: 'tile-volume' }),
    spark: h('canvas', { class: 'tile-spark', 'aria-hidden': 'true' }), held: h('span', { class: 'tile-held', title: 'You hold a position', hidden: true }),
  };
  t.label = document.createTextNode('');
  t.question.append(t.held, t.label);
  t.button = h('button', { type: 'button', class: 'tile', onclick: () => select(m.id, true) },
    t.question, h('span', { class: 'tile-prices' }, h('span', {}, 'Yes ', t.yes), h('span', {}, 'No ', t.no), t.volume), t.spark);
  t.item = h('li', { 'data-market': m.id }, t.button);
  tiles.set(m.id, t);
  return t;
}

function renderTile(m) {
  let t = tiles.get(m.id);
  if (!t) {
    t = makeTile(m);
    $('markets').append(t.item);
  }
  if (t.label.data !== m.title) t.label.data = m.title;
  put(t.yes, cents(m.price));
  put(t.no, cents(1_000_000 - m.price));
  put(t.volume, moneyShort(m.volume));
  t.held.hidden = m.mine.yes === 0 && m.mine.no === 0;
  t.button.setAttribute('aria-current', String(m.id === selected));
}

/** A price that has just moved shows which way, and fades back. */
function flash(element, m) {
  const fresh = m.direction !== 0 && performance.now() - m.changed < 260;
  element.classList.toggle('up', fresh && m.direction > 0);
  element.classList.toggle('down', fresh && m.direction < 0);
}

function select(id, scroll) {
  if (!store.markets.has(id)) return;
  const before = selected;
  selected = shown = id;
  history.replaceState(null, '', `#${id}`);
  lastDrawn = { tape: 0, market: '' };
  for (const x of [before, id]) if (store.markets.has(x)) renderTile(store.markets.get(x));
  if (scroll) tiles.get(id).item.scrollIntoView({ block: 'nearest', inline: 'nearest', behavior: reducedMotion.matches || before === id ? 'auto' : 'smooth' });
  chart.jump();
  renderMarket();
}

function renderMarket() {
  const m = store.markets.get(selected);
  if (!m) return;
  put($('m-category'), `${m.category} · ${moneyShort(m.volume)} traded · ${m.version.toLocaleString('en-US')} trades`);
  put($('m-question'), m.question);
  put($('m-rules'), m.rules);
  put($('m-price'), cents(m.price));
  flash($('m-price'), m);
  const first = m.points.length > 0 ? m.points[0] : null;
  const change = first ? m.price - first.p : 0;
  const minutes = first ? Math.max(1, Math.min(15, Math.round((now() - first.t) / 60_000))) : 0;
  put($('m-change'), first ? `${centsChange(change)} in ${minutes} min` : 'no trades yet');
  $('m-change').className = `now-change ${change > 0 ? 'yes' : change < 0 ? 'no' : ''}`;
  renderTape(m);
  ticket.show(m);
}

function renderTape(m) {
  const body = $('tape');
  if (lastDrawn.market !== m.id) {
    body.replaceChildren();
    lastDrawn = { market: m.id, tape: 0 };
  }
  const quiet = lastDrawn.tape === 0;
  for (const t of m.tape) {
    if (t.version <= lastDrawn.tape) continue;
    lastDrawn.tape = t.version;
    const mine = t.trader === store.trader?.trader;
    const bought = t.shares > 0;
    body.prepend(h('tr', { class: `${quiet ? '' : 'fresh'} ${mine ? 'mine' : ''} ${mine && t.side === 'no' ? 'against' : ''}` },
      h('td', {}, clock(t.at)), h('td', {}, mine ? 'You' : t.name),
      h('td', { class: t.side }, `${bought ? 'Bought' : 'Sold'} ${t.side === 'yes' ? 'Yes' : 'No'}`),
      h('td', { class: 'num' }, shares(t.shares)), h('td', { class: 'num' }, money(Math.abs(t.cost))), h('td', { class: 'num' }, cents(t.price))));
  }
  while (body.children.length > TAPE_ROWS) body.lastChild.remove();
  $('tape-empty').hidden = m.tape.length > 0;
}

// ------------------------------------------------------------------------------------------------ account

const rows = new Map();

function renderAccount() {
  if (!store.trader) return;
  const a = store.account();
  put($('a-name'), store.trader.name);
  put($('a-balance'), money(a.balance));
  put($('a-worth'), money(a.worth));
  put($('a-profit'), moneyChange(a.profit));
  $('a-profit').className = a.profit > 4_999 ? 'yes' : a.profit < -4_999 ? 'no' : '';
  const list = $('positions');
  for (const m of store.markets.values()) {
    for (const side of ['yes', 'no']) {
      const key = `${m.id} ${side}`;
      const held = m.mine[side];
      let row = rows.get(key);
      if (held === 0) {
        if (row) {
          row.item.remove();
          rows.delete(key);
        }
        continue;
      }
      if (!row) {
        row = { text: h('span', { class: 'pos-name' }, m.title), side: h('small', { class: `pos-side ${side}` }), worth: h('span', { class: 'pos-worth' }) };
        row.item = h('li', {}, h('button', { type: 'button', title: 'Show this market, to sell', onclick: () => { select(m.id, true); ticket.choose(true, side); } },
          row.text, row.side, row.worth));
        rows.set(key, row);
        list.append(row.item);
      }
      const price = side === 'yes' ? m.price : 1_000_000 - m.price;
      put(row.side, `${shares(held)} ${side === 'yes' ? 'Yes' : 'No'}`);
      put(row.worth, money((held * price) / 1_000_000));
    }
  }
  $('positions-empty').hidden = rows.size > 0;
}

// ------------------------------------------------------------------------------------------------ drawing

/** The database's clock, for the right edge of charts. */
const now = () => Date.now() + clocks.offset;

const chart = new Chart($('chart'), () => {
  const m = store.markets.get(selected);
  return m && { points: m.points, marks: m.marks, price: m.price, now: now() };
}, (seen) => {
  const m = store.markets.get(selected);
  put($('readout'), seen ? `${clock(seen.t)} · Yes ${cents(seen.p)} · No ${cents(1_000_000 - seen.p)}` : m ? 'Price of Yes' : '');
});

for (const button of document.querySelectorAll('[data-range]')) {
  button.addEventListener('click', () => {
    for (const b of document.querySelectorAll('[data-range]')) b.setAttribute('aria-pressed', String(b === button));
    chart.rangeMS = Number(button.dataset.range) * 1000;
    chart.jump();
  });
}

function frame() {
  if (dirty.size > 0 && store.complete) {
    for (const id of shown === '' ? store.markets.keys() : dirty) renderTile(store.markets.get(id));
    if (shown === '') select(store.markets.has(selected) ? selected : [...store.markets.keys()][0], true);
    else if (dirty.has(selected)) renderMarket();
    renderAccount();
    dirty.clear();
  }
  requestAnimationFrame(frame);
}

function slow() {
  spark ??= { yes: colour('yes'), no: colour('no') };
  for (const m of store.markets.values()) {
    const t = tiles.get(m.id);
    if (!t) continue;
    sparkline(t.spark, m.points, m.price, now(), spark);
    if (m.id === selected) flash($('m-price'), m);
  }
}

function describeChart() {
  const m = store.markets.get(selected);
  if (m) $('chart').setAttribute('aria-label', `Price of Yes over time: ${cents(m.price)} now. Arrow keys move the crosshair.`);
}

// ------------------------------------------------------------------------------------------------ theme

const themes = ['auto', 'light', 'dark'];

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  put($('theme-text'), theme[0].toUpperCase() + theme.slice(1));
  $('theme').setAttribute('aria-label', `Theme: ${theme === 'auto' ? 'as the system' : theme}`);
  chart.recolour();
  spark = null;
}

$('theme').addEventListener('click', () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? 'auto') + 1) % themes.length];
  try {
    localStorage.setItem('theme', next);
  } catch {
    // Not remembered, then.
  }
  setTheme(next);
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => setTheme(document.documentElement.dataset.theme ?? 'auto'));

// ------------------------------------------------------------------------------------------------ start

window.__demo = {
  figures: () => ({
    markets: Object.fromEntries([...store.markets.values()].map((m) => [m.id, {
      offset: m.offset, version: m.version, price: m.price, yes: m.yes, no: m.no, volume: m.volume, mine: { ...m.mine },
    }])),
    account: store.account(),
    trader: store.trader,
  }),
  status: () => ({ connection: feed.connection.state, stats: stats(), latency: panel.figures(), verify: { ...verifier.state } }),
  select: (id) => select(id),
};

setTheme(document.documentElement.dataset.theme ?? 'auto');
for (let i = 0; i < 8; i++) $('markets').append(h('li', { class: 'loading' }, h('span', { class: 'bone bone-row' })));
requestAnimationFrame(frame);
setInterval(slow, 400);
setInterval(describeChart, 5000);
addEventListener('hashchange', () => select(location.hash.slice(1)));

/** Session and names of markets come first; both are tried until they come. */
async function start() {
  for (let attempt = 0; ; attempt++) {
    try {
      store.trader = await api.session();
      const ids = await api.markets();
      for (const bone of document.querySelectorAll('#markets .loading')) bone.remove();
      store.expect(ids);
      ids.forEach(follow);
      verifier.run();
      return;
    } catch (err) {
      awaySince ||= Date.now() - STALE_AFTER;
      panel.say(`The exchange does not answer: ${err.message}`, 'bad');
      await new Promise((done) => setTimeout(done, Math.random() * Math.min(10_000, 1000 * 2 ** attempt)));
    }
  }
}
start();
