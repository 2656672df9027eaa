// The order ticket: what to trade, the price its author sees, and what became of it. An order carries the price seen
// and how far it may have moved; when the market has moved further, the server refuses with the fresh quote, and the
// ticket offers to trade at that.

import { act, ActError } from './commitcast.js';
import { $, UNIT, cents, centsChange, duration, h, money, put, shares } from './format.js';
import { preview } from './store.js';

const TOLERANCES = [[0, '0'], [5_000, '0.5¢'], [10_000, '1¢'], [30_000, '3¢']];
/** How long a trade that was made is shown. */
const DONE_MS = 8_000;
const QUICK_BUY = [10, 25, 100];

export class Ticket {
  #market = null;
  #held = null; // {price, cursor}: the price the author holds on to, instead of the live one
  #busy = false;
  #fade = 0;
  #pushes = new Map(); // "market:version" of own trades → when their push arrived
  #el = {};

  /** account() gives the figures of the store, topic(id) what the client follows; onTrade(text) announces. */
  constructor({ account, topic, onTrade, onRefused }) {
    Object.assign(this, { account, topic, onTrade, onRefused });
    this.#build();
  }

  show(market) {
    if (this.#market?.id !== market.id) {
      this.#held = null;
      this.#say(null);
    }
    this.#market = market;
    this.render();
  }

  /** Chooses action and side, for a link elsewhere on the page. */
  choose(sell, side) {
    this.#el.form.elements.action.value = sell ? 'sell' : 'buy';
    this.#el.form.elements.side.value = side;
    if (sell) this.#max();
    this.render();
  }

  /** An own trade came back as a push. */
  pushed(market, version, receivedAt) {
    this.#pushes.set(`${market}:${version}`, receivedAt);
    if (this.#pushes.size > 50) this.#pushes.delete(this.#pushes.keys().next().value);
  }

  #build() {
    const e = this.#el;
    const radio = (name, value, label, checked, more) => h('label', more || {}, h('input', { type: 'radio', name, value, checked }), label);
    e.yes = h('b', {}, '–');
    e.no = h('b', {}, '–');
    e.amountLabel = h('label', { for: 'amount' }, 'Amount');
    e.amountHint = h('span', {}, '');
    e.sign = h('span', { 'aria-hidden': 'true' }, '$');
    e.amount = h('input', { id: 'amount', name: 'amount', type: 'text', inputmode: 'decimal', autocomplete: 'off', value: '25', 'aria-describedby': 'amount-unit' });
    e.unit = h('span', { id: 'amount-unit' }, '');
    e.quick = h('div', { class: 'quick' },
      ...QUICK_BUY.map((v) => h('button', { type: 'button', onclick: () => this.#set(String(v)) }, `$${v}`)),
      h('button', { type: 'button', onclick: () => { this.#max(); this.render(); } }, 'Max'));
    e.seenPrice = h('b', {}, '–');
    e.seenNote = h('small', {}, '');
    e.hold = h('button', { type: 'button', class: 'link', 'aria-pressed': 'false', title: 'Hold on to the price you see now, as a slow reader would. The market may refuse it.', onclick: () => this.#toggleHold() }, 'Hold');
    e.seen = h('div', { class: 'seen' }, h('div', {}, 'You see ', e.seenPrice, e.seenNote), e.hold);
    e.brief = h('dl', { class: 'brief' });
    e.briefRows = ['', '', ''].map(() => {
      const row = [h('dt'), h('dd')];
      e.brief.append(...row);
      return row;
    });
    e.go = h('button', { type: 'submit', class: 'go' }, 'Buy');
    e.result = h('div', { role: 'status', 'aria-live': 'polite', hidden: true });
    e.form = h('form', { novalidate: true, autocomplete: 'off' },
      h('div', { class: 'tabs', role: 'radiogroup', 'aria-label': 'Action' },
        radio('action', 'buy', h('span', {}, 'Buy'), true), radio('action', 'sell', h('span', {}, 'Sell'), false)),
      h('div', { class: 'sides', role: 'radiogroup', 'aria-label': 'Answer' },
        radio('side', 'yes', h('span', {}, 'Yes', e.yes), true, { class: 'side-yes' }),
        radio('side', 'no', h('span', {}, 'No', e.no), false, { class: 'side-no' })),
      h('div', {},
        h('div', { class: 'field-head' }, e.amountLabel, e.amountHint),
        h('div', { class: 'amount' }, e.sign, e.amount, e.unit), e.quick),
      h('div', { class: 'slip' },
        h('div', { class: 'field-head' }, h('span', { id: 'tol' }, 'Slippage')),
        h('div', { class: 'tabs', role: 'radiogroup', 'aria-labelledby': 'tol' },
          ...TOLERANCES.map(([v, label]) => radio('tolerance', String(v), h('span', {}, label), v === 10_000)))),
      e.result, e.seen, e.brief, e.go);
    e.form.addEventListener('input', () => {
      this.#say(null);
      this.render();
    });
    e.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    $('ticket').append(h('h2', { class: 'sr' }, 'Trade'), e.form);
  }

  get #form() {
    const f = this.#el.form.elements;
    const text = f.amount.value.trim().replace(/[$,\s]/g, '');
    const amount = /^\d{0,7}(\.\d{0,6})?$/.test(text) ? Math.round(Number(text) * UNIT) : NaN;
    return { sell: f.action.value === 'sell', side: f.side.value, amount, tolerance: Number(f.tolerance.value), blank: text === '' };
  }

  #set(text) {
    this.#el.amount.value = text;
    this.render();
  }

  #max() {
    const { sell, side } = this.#form;
    const most = sell ? this.#market.mine[side] : this.account().balance;
    this.#el.amount.value = (sell ? most / UNIT : Math.floor(most / 10_000) / 100).toString();
  }

  #toggleHold() {
    this.#held = this.#held ? null : { price: this.#market.price, cursor: this.#market.cursor };
    this.render();
  }

  /** The price of a side that the author sees. */
  #quote(side) {
    const seen = this.#held ?? this.#market;
    return { price: side === 'yes' ? seen.price : UNIT - seen.price, cursor: seen.cursor };
  }

  render() {
    const m = this.#market;
    if (!m) return;
    const e = this.#el;
    const { sell, side, amount, tolerance, blank } = this.#form;
    const name = side === 'yes' ? 'Yes' : 'No';
    put(e.yes, cents(m.price));
    put(e.no, cents(UNIT - m.price));
    put(e.amountLabel, sell ? 'Shares to sell' : 'Money to spend');
    put(e.sign, sell ? '' : '$');
    put(e.unit, sell ? 'shares' : '');
    const held = m.mine[side];
    put(e.amountHint, sell ? `you hold ${shares(held)} ${name}` : `${money(this.account().balance)} free`);
    e.quick.classList.toggle('sell', sell);
    for (const b of [...e.quick.children].slice(0, QUICK_BUY.length)) b.hidden = sell;

    const seen = this.#quote(side).price;
    const now = side === 'yes' ? m.price : UNIT - m.price;
    const against = sell ? seen - now : now - seen;
    put(e.seenPrice, cents(seen));
    put(e.seenNote, this.#held
      ? `now ${cents(now)} (${centsChange(now - seen)})`
      : document.body.classList.contains('stale') ? 'last known' : 'live');
    put(e.hold, this.#held ? 'Follow' : 'Hold');
    e.hold.setAttribute('aria-pressed', String(Boolean(this.#held)));
    e.seen.dataset.drift = against > tolerance ? 'out' : 'in';

    const quote = Number.isFinite(amount) ? preview(m, side, sell, amount) : null;
    const rows = quote && !sell
      ? [['Shares', shares(quote.shares)], ['Average', cents(quote.money / quote.shares * UNIT)], [`Pays if ${name}`, money(quote.shares)]]
      : quote
        ? [['You receive', money(quote.money)], ['Average', cents(quote.money / quote.shares * UNIT)], [`${name} after`, cents(quote.after)]]
        : [['Shares', '–'], ['Average', '–'], [sell ? `${name} after` : `Pays if ${name}`, '–']];
    rows.forEach(([label, value], i) => {
      put(e.briefRows[i][0], label);
      put(e.briefRows[i][1], value);
    });

    let reason = '';
    if (blank || amount === 0) reason = 'Enter an amount';
    else if (!Number.isFinite(amount)) reason = 'The amount is not a number';
    else if (sell && held === 0) reason = `You hold no ${name} here`;
    else if (sell && amount > held) reason = `You hold ${shares(held)} ${name}`;
    else if (!sell && amount > this.account().balance) reason = 'More than you have';
    else if (!quote) reason = 'Too large for this market';
    e.go.disabled = this.#busy || reason !== '';
    e.go.classList.toggle('go-no', side === 'no');
    put(e.go, this.#busy ? 'Sending…' : reason || `${sell ? 'Sell' : 'Buy'} ${name} at about ${cents(seen)}`);
    e.amount.setAttribute('aria-invalid', String(reason !== '' && !blank));
  }

  #submit(again) {
    const { sell, side, amount, tolerance } = this.#form;
    if (!again && this.#el.go.disabled) return;
    this.#send(again ?? { market: this.#market.id, body: { side, action: sell ? 'sell' : 'buy', amount, tolerance }, seen: this.#quote(side) });
  }

  /** Sends an order; with a key, one whose answer was lost. */
  async #send({ market, body, seen, key }) {
    const order = { market, body, seen };
    this.#busy = true;
    this.render();
    const sentAt = performance.timeOrigin + performance.now();
    try {
      const answer = await act({ url: `/api/markets/${market}/trades`, json: body },
        { topic: this.topic(market), saw: `${seen.cursor};${seen.price}`, key, timeout: 10_000 });
      this.#held = null;
      if (answer.stale) this.#refused(order, answer.fresh);
      else this.#done(answer.data, sentAt);
    } catch (err) {
      this.#failed(order, err);
    } finally {
      this.#busy = false;
      this.render();
    }
  }

  #done(fill, sentAt) {
    const verb = fill.shares > 0 ? 'Bought' : 'Sold';
    const name = fill.side === 'yes' ? 'Yes' : 'No';
    const average = Math.abs(fill.cost / fill.shares) * UNIT;
    const title = `${verb} ${shares(fill.shares)} ${name} at ${cents(average)}`;
    const note = h('span', {}, 'Committed; waiting for its push…');
    this.#say('done', h('strong', {}, title), note);
    this.onTrade(`${title}, ${money(Math.abs(fill.cost))}`);
    // The push of the same trade is what moves the figures: it carries the market's version.
    const key = `${fill.market}:${fill.version}`;
    const began = performance.now();
    const look = () => {
      const at = this.#pushes.get(key);
      if (at) put(note, `${money(Math.abs(fill.cost))} · on this screen after ${duration(at - sentAt)}`);
      else if (performance.now() - began < 60_000) setTimeout(look, 60);
    };
    look();
  }

  #refused(order, { quote, cursor }) {
    const name = quote.side === 'yes' ? 'Yes' : 'No';
    const again = { ...order, seen: { price: quote.now, cursor } };
    this.#say('refused',
      h('strong', {}, 'Refused: the market moved'),
      h('span', {}, 'Nothing was traded.'),
      h('div', { class: 'prices' },
        h('div', {}, h('small', {}, 'You saw'), h('b', {}, cents(order.seen.price))),
        h('div', {}, h('small', {}, 'You allowed'), h('b', {}, cents(order.body.tolerance))),
        h('div', {}, h('small', {}, `${name} now`), h('b', {}, cents(quote.now)))),
      h('div', { class: 'row' },
        h('button', { type: 'button', class: 'again', onclick: () => this.#submit(again) }, `Trade at ${cents(quote.now)}`),
        h('button', { type: 'button', class: 'away', onclick: () => this.#dismiss() }, 'Dismiss')));
    this.#held = null;
    this.onRefused(`Order refused: ${name} is at ${cents(quote.now)} now, you saw ${cents(order.seen.price)}`);
  }

  #failed(order, err) {
    const unknown = !(err instanceof ActError) || err.unknown || err.status >= 500;
    this.#say('failed',
      h('strong', {}, unknown ? 'No answer' : err.body?.title || 'Refused'),
      h('span', {}, unknown ? 'The order may or may not have been carried out. Asking again cannot trade twice: it has a key.' : err.body?.detail || err.message),
      h('div', { class: 'row' },
        ...(unknown ? [h('button', { type: 'button', class: 'again', onclick: () => this.#submit({ ...order, key: err.key }) }, 'Ask again')] : []),
        h('button', { type: 'button', class: 'away', onclick: () => this.#dismiss() }, 'Dismiss')));
  }

  #dismiss() {
    this.#say(null);
    this.#el.go.focus();
  }

  #say(kind, ...children) {
    this.#el.result.className = kind ? `result ${kind}` : '';
    this.#el.result.replaceChildren(...children);
    this.#el.result.hidden = !kind;
    clearTimeout(this.#fade);
    if (kind === 'done') this.#fade = setTimeout(() => this.#say(null), DONE_MS);
  }
}
