// The strip and the pipeline panel: what the machinery does, figures about it, and the buttons that break it.

import * as api from './api.js';
import { $, clock, count, duration, h, put } from './format.js';

/** Over how long latency and rate are taken. */
const WINDOW_MS = 30_000;
const RATE_MS = 5_000;
const LOG_LINES = 60;

export class Panel {
  #status = null;
  #latencies = []; // {at, ms} of live events
  #arrivals = []; // when events arrived
  #acts = []; // what was broken and waits for "screen equals database"
  #healing = { gaps: 0, healed: 0, replayed: 0, timer: 0 };
  #flushedAt = 0;
  #lostAt = 0;
  #rateTouched = 0;

  constructor({ feed, stats, verifier, tab }) {
    Object.assign(this, { feed, stats, verifier, tab });
    $('b-cut').addEventListener('click', () => this.#cut());
    $('b-flush').addEventListener('click', () => this.#flush());
    $('b-worker').addEventListener('click', () => this.#worker());
    $('rate').addEventListener('input', () => {
      this.#rateTouched = performance.now();
      put($('rate-text'), `${$('rate').value} trades/s`);
    });
    $('rate').addEventListener('change', () => this.#setRate());
    setInterval(() => this.render(), 500);
    this.#poll();
  }

  /** An event was received. ms: from its commit to here; absent for a replayed one. */
  received(at, ms) {
    this.#arrivals.push(at);
    if (ms !== undefined) this.#latencies.push({ at, ms });
  }

  // ---------------------------------------------------------------------------------------------- what happened

  say(text, kind = '') {
    const log = $('log');
    const atEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 24;
    log.append(h('li', { 'data-kind': kind }, h('time', {}, clock(Date.now())), h('span', {}, text)));
    while (log.children.length > LOG_LINES) log.firstChild.remove();
    if (atEnd || kind === 'act') log.scrollTop = log.scrollHeight;
  }

  connection({ state, retryAt, reason }) {
    if (state === 'waiting') {
      this.#lostAt ||= Date.now();
      this.say(`Connection lost (${reason}); next attempt in ${duration(retryAt - Date.now())}`, 'bad');
    } else if (state === 'open') {
      this.say(this.#lostAt
        ? `Connected again after ${duration(Date.now() - this.#lostAt)}; going on from the last cursor of each topic`
        : 'Connected; the snapshot is read, and the stream goes on where it ends');
      this.#lostAt = 0;
    }
  }

  healing(what) {
    const sum = this.#healing;
    if (what.kind === 'gap') sum.gaps += what.until - what.after;
    else if (what.kind === 'healed') sum.healed++;
    else if (what.kind === 'reset') this.say(`Reset of ${what.topic} (${what.reason}): reading the snapshot in ${duration(what.in_ms)}`);
    if (!sum.timer && (what.kind === 'gap' || what.kind === 'healed')) {
      sum.timer = setTimeout(() => this.#sumUp(), 400);
    }
  }

  /** One line for all topics: they heal together. */
  #sumUp() {
    const sum = this.#healing;
    clearTimeout(sum.timer);
    if (sum.gaps) this.say(`${count(sum.gaps)} events were missed; replayed in order, ${sum.healed} ${sum.healed === 1 ? 'gap' : 'gaps'} healed`);
    Object.assign(sum, { gaps: 0, healed: 0, timer: 0 });
  }

  verified(state) {
    if (state.kind !== 'equal') return;
    const stopped = this.#status && this.#status.worker.state !== 'running';
    for (const act of this.#acts) {
      if (act.readAfter > state.at - 200 || stopped) continue;
      act.done = true;
      this.#sumUp();
      this.say(`Screen equals database at offset ${count(state.total)}: ${duration(state.at - act.at)} after ${act.what}`, 'good');
    }
    this.#acts = this.#acts.filter((a) => !a.done);
  }

  #broke(what) {
    const now = Date.now();
    this.#acts = this.#acts.filter((a) => a.what !== what);
    this.#acts.push({ what, at: now, readAfter: now });
  }

  // ---------------------------------------------------------------------------------------------- buttons

  async #press(button, act) {
    button.disabled = true;
    try {
      const status = await act();
      if (status) this.#status = status;
    } catch (err) {
      this.say(`${button.firstElementChild.textContent}: ${err.message}`, 'bad');
    } finally {
      button.disabled = false;
      this.render();
    }
  }

  #cut() {
    return this.#press($('b-cut'), async () => {
      this.say('Cutting this tab’s socket with a TCP reset', 'act');
      this.#broke('the cut');
      return api.cut(this.tab);
    });
  }

  #flush() {
    return this.#press($('b-flush'), async () => {
      this.say('FLUSHALL: Redis is emptied, streams and all', 'act');
      const status = await api.flush();
      this.#flushedAt = Date.now();
      this.#broke('the flush');
      this.say('Redis is empty. The journal in Postgres has every event; the worker refills the stream from it');
      return status;
    });
  }

  #worker() {
    return this.#press($('b-worker'), async () => {
      const before = this.#status?.worker;
      if (before?.state === 'running') {
        this.say(before.pid ? `kill -9 ${before.pid}: the worker is gone` : 'The worker is stopped', 'act');
        const status = await api.setWorker(false);
        this.say('Trades go on: writers never wait. Their events wait in the outbox, durably');
        return status;
      }
      const waited = Date.now() - before.since;
      const status = await api.setWorker(true);
      this.say(`Worker started${status.worker.pid ? ` (pid ${status.worker.pid})` : ''}, after ${duration(waited)}`, 'act');
      this.#broke('the start');
      return status;
    });
  }

  async #setRate() {
    const rate = Number($('rate').value);
    try {
      this.#status = await api.setRate(rate);
    } catch (err) {
      this.say(`Bots: ${err.message}`, 'bad');
    }
    this.#rateTouched = 0;
    this.render();
  }

  async #poll() {
    for (;;) {
      try {
        const status = await api.status();
        const before = this.#status?.worker;
        this.#status = status;
        if (before?.state === 'running' && status.worker.state === 'exited') {
          this.say(`The worker ended by itself${status.worker.error ? `: ${status.worker.error}` : ''}`, 'bad');
        }
      } catch {
        this.#status = null;
      }
      await new Promise((done) => setTimeout(done, 1000));
    }
  }

  // ---------------------------------------------------------------------------------------------- figures

  /** Percentiles of commit → screen over the window, and events a second. */
  figures() {
    const now = performance.now();
    const keep = (list, at, ms) => {
      const i = list.findIndex((x) => at(x) > now - ms);
      list.splice(0, i < 0 ? list.length : i);
    };
    keep(this.#latencies, (x) => x.at, WINDOW_MS);
    keep(this.#arrivals, (x) => x, RATE_MS);
    const sorted = this.#latencies.map((x) => x.ms).sort((a, b) => a - b);
    const at = (q) => (sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : NaN);
    return { p50: at(0.5), p99: at(0.99), rate: this.#arrivals.length / (RATE_MS / 1000), samples: sorted.length };
  }

  render() {
    const f = this.figures();
    const s = this.stats();
    put($('f-p50'), duration(f.p50));
    put($('f-p99'), duration(f.p99));
    put($('f-rate'), f.rate < 9.95 ? f.rate.toFixed(1) : count(f.rate));
    put($('f-received'), count(s.received));
    put($('f-replayed'), count(s.replayed));
    put($('f-healed'), count(s.healed));
    put($('f-duplicates'), count(s.duplicates));
    put($('f-resets'), count(s.resets));
    this.#renderVerify(this.verifier.state);
    this.#renderFlow(this.verifier.state);
  }

  #renderVerify(v) {
    const line = $('verify');
    line.dataset.kind = v.kind;
    const down = this.#status && this.#status.worker.state !== 'running';
    const checks = `${count(v.equal)} of ${count(v.checks)} checks equal`;
    const text = {
      starting: ['Comparing this screen with the database…', 'The first check is under way.'],
      equal: [`Screen equals database at offset ${count(v.total)}`,
        `${v.markets} markets and your account, to the last millionth · ${checks}`],
      behind: [`Database is ${count(v.behind)} ${v.behind === 1 ? 'event' : 'events'} ahead of this screen`,
        down ? 'The worker is stopped: nothing is lost, everything waits in the outbox.' : `On the way… · ${checks}`],
      different: ['Screen differs from the database', v.detail],
      unread: ['The database cannot be asked now', v.detail],
    }[v.kind];
    put($('verify-title'), text[0]);
    put($('verify-detail'), text[1]);
  }

  #renderFlow(v) {
    const set = (id, state, text, title) => {
      const node = $(id);
      node.dataset.state = state;
      put(node.lastElementChild, text);
      node.title = title ?? text;
    };
    const st = this.#status;
    const connection = this.feed.connection.state;
    const open = connection === 'open';
    set('n-postgres', st ? 'up' : 'down', v.total ? `${count(v.total)} events` : st ? 'the authority' : 'not reachable');
    if (st) {
      const running = st.worker.state === 'running';
      const waiting = v.waiting > 0 ? `${count(v.waiting)} waiting` : '';
      set('n-worker', running ? 'up' : 'down', running ? (st.worker.pid ? `pid ${st.worker.pid}` : 'in this process') : waiting || st.worker.state);
      const flushed = Date.now() - this.#flushedAt < 4000;
      put($('n-stream').firstElementChild, st.stream === 'redis' ? 'Redis' : 'Stream');
      set('n-stream', flushed ? 'busy' : 'up', flushed ? 'flushed' : st.stream === 'redis' ? 'pub/sub, log' : 'in-process', st.flush || undefined);

      const b = $('b-worker');
      put(b.firstElementChild, running ? 'Kill the worker' : 'Start the worker');
      put(b.lastElementChild, running ? (st.worker.pid ? `kill -9 ${st.worker.pid}` : 'cancel it') : waiting || 'it is stopped');
      b.toggleAttribute('data-start', !running);
      $('b-flush').title = st.flush;
      put($('b-flush').lastElementChild, st.flush ? (st.stream === 'redis' ? 'not ours to flush' : 'no Redis here') : 'FLUSHALL, streams and all');
      if (st.flush) $('b-flush').disabled = true;
      if (!st.controls) for (const id of ['b-cut', 'b-flush', 'b-worker']) $(id).disabled = true;
      $('rate').disabled = !st.controls;
      if (performance.now() - this.#rateTouched > 3000) {
        $('rate').value = st.bots.rate;
        put($('rate-text'), `${count(st.bots.rate)} trades/s`);
      }
      put($('bots-text'), `${st.bots.count} bots · ${count(st.bots.trades)} trades · ${count(st.bots.refused)} refused as stale`);
    } else {
      set('n-worker', 'unknown', '–');
      set('n-stream', 'unknown', '–');
    }
    set('n-broadcaster', open ? 'up' : 'down', open ? 'pushing' : 'no socket');
    set('n-tab', open ? 'up' : 'down', open ? `${count(this.stats().applied)} applied` : connection);
  }
}
