// A Commitcast client for browsers: protocol commitcast.v1, no dependencies, no knowledge of the page.
//
//   const client = new Client({
//     url,                                    // of /v1/ws
//     snapshot: async (topics, signal) => ({positions, state}),   // positions as outbox.Snapshot gives them
//     onSnapshot(state, positions) {},        // replace what the page shows of these topics
//     onEvent(event) {},                      // apply one event; called exactly once for each, in order
//     onStatus(status) {},                    // {state, retryAt, why}
//     onHealing(what) {},                     // {kind: 'gap' | 'healed' | 'reset' | 'reread', topic, …}
//   });
//   client.follow(topics); client.start(); … client.close();
//
// The contract: apply n+1 at once; drop n and below; on a hole, subscribe again from the own cursor; on a reset, or
// when a heartbeat's head stays ahead, re-read the snapshot and go on from its cursor. Events that a snapshot holds
// already although they had no offset yet ("pending") are recognised by id when they arrive, and skipped once.

/** The longest pause before another attempt to connect, and the first; each attempt doubles it. Milliseconds. */
const RETRY_FIRST = 400;
const RETRY_MOST = 15_000;
/** How long a connection must stand before the next failure counts as the first. */
const STABLE_AFTER = 5_000;
/** How long the server may take to say hello. */
const HELLO_WITHIN = 10_000;
/** A connection that is silent for so many heartbeats is dead. */
const SILENT_HEARTBEATS = 2.5;
/** How long a heartbeat's head may stay ahead of the cursor before the snapshot is read again. */
const BEHIND_FOR = 2_000;
/** How long a snapshot may take. */
const SNAPSHOT_WITHIN = 10_000;
/** Close codes after which connecting again by itself would not help. */
const FINAL_CODES = new Set([1003, 1009, 4401, 4429]);

export const PROTOCOL = 'commitcast.v1';

/** Reads "epoch:offset". */
export function parseCursor(text) {
  const at = text.lastIndexOf(':');
  return { epoch: text.slice(0, at), offset: Number(text.slice(at + 1)) };
}

export class Client {
  #config;
  #topics = new Map(); // name → topic
  #socket = null;
  #hello = null;
  #requests = new Map(); // id → {op, topic}
  #nextID = 1;
  #attempt = 0;
  #openedAt = 0;
  #heardAt = 0;
  #comeBackAt = 0;
  #timers = { retry: 0, hello: 0, watch: 0, reread: 0 };
  #reading = null; // AbortController of the snapshot under way
  #rereadAttempt = 0;
  #running = false;

  /** Counters, for people: what was received and what was mended. Never reset. */
  stats = {
    received: 0, applied: 0, skipped: 0, duplicates: 0, replayed: 0, gaps: 0, healed: 0, resets: 0, rereads: 0,
    connects: 0, losses: 0,
  };
  status = { state: 'idle', retryAt: 0, why: '' };

  constructor(config) {
    this.#config = { onSnapshot() {}, onEvent() {}, onStatus() {}, onHealing() {}, ...config };
  }

  /** Adds topics to follow. */
  follow(topics) {
    for (const name of topics) {
      if (this.#topics.has(name)) continue;
      this.#topics.set(name, {
        name, state: 'loading', dueAt: 0, // loading → idle → subscribing → live; back to loading to re-read
        epoch: '', offset: 0, pending: new Set(), snapshotEpoch: '',
        subscribedBefore: false, replayUntil: 0, healUntil: 0, behindTimer: 0,
      });
    }
    if (this.#running) this.#planReread();
  }

  start() {
    this.#running = true;
    this.#planReread();
    this.#connect();
    this.#timers.watch = setInterval(() => this.#watch(), 1000);
    globalThis.addEventListener?.('online', this.#online);
  }

  close() {
    this.#running = false;
    clearTimeout(this.#timers.retry);
    clearTimeout(this.#timers.hello);
    clearTimeout(this.#timers.reread);
    clearInterval(this.#timers.watch);
    globalThis.removeEventListener?.('online', this.#online);
    for (const t of this.#topics.values()) clearTimeout(t.behindTimer);
    this.#reading?.abort();
    this.#drop();
    this.#setStatus('closed', 0, '');
  }

  /** Where a topic stands: how far events were applied, and how many of its snapshot are still to be skipped. */
  position(name) {
    const t = this.#topics.get(name);
    return t && { state: t.state, epoch: t.epoch, offset: t.offset, pending: t.pending.size };
  }

  /** Reads the snapshot of topics again: for a page that found itself different from the database. */
  reread(topics, why) {
    for (const name of topics) {
      const t = this.#topics.get(name);
      if (t && t.state !== 'loading') this.#reread(t, 0, why);
    }
  }

  // ------------------------------------------------------------------------------------------------ connection

  #online = () => {
    if (this.status.state === 'waiting' && Date.now() > this.#comeBackAt) this.#connect();
  };

  #connect() {
    clearTimeout(this.#timers.retry);
    if (!this.#running || this.#socket) return;
    this.#setStatus('connecting', 0, this.status.why);
    let socket;
    try {
      socket = new WebSocket(this.#config.url, PROTOCOL);
    } catch (err) {
      this.#setStatus('refused', 0, String(err));
      return;
    }
    this.#socket = socket;
    this.#hello = null;
    this.#timers.hello = setTimeout(() => this.#lost(socket, 'the server did not say hello'), HELLO_WITHIN);
    socket.onmessage = (m) => {
      if (socket === this.#socket) this.#message(m.data);
    };
    socket.onclose = (c) => this.#lost(socket, c.reason || `closed (${c.code})`, c.code);
  }

  /** Forgets the socket, without a word to it. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#hello = null;
    this.#requests.clear();
    clearTimeout(this.#timers.hello);
    if (socket) {
      socket.onmessage = socket.onclose = null;
      socket.close();
    }
    for (const t of this.#topics.values()) {
      if (t.state !== 'loading') t.state = 'idle';
    }
  }

  #lost(socket, why, code) {
    if (socket !== this.#socket) return;
    const stood = this.#hello ? Date.now() - this.#openedAt : 0;
    if (this.#hello) this.stats.losses++;
    this.#drop();
    if (FINAL_CODES.has(code)) {
      this.#setStatus('refused', 0, why);
      return;
    }
    if (stood > STABLE_AFTER) this.#attempt = 0;
    // Full jitter: after an outage, clients must not come back as one wave. The server's own word goes first.
    const told = this.#comeBackAt - Date.now();
    const pause = told > 0 ? told : Math.random() * Math.min(RETRY_MOST, RETRY_FIRST * 2 ** this.#attempt);
    this.#attempt++;
    this.#timers.retry = setTimeout(() => this.#connect(), pause);
    this.#setStatus('waiting', Date.now() + pause, why);
  }

  #watch() {
    if (this.#hello && Date.now() - this.#heardAt > SILENT_HEARTBEATS * this.#hello.heartbeat_ms) {
      this.#lost(this.#socket, 'the server fell silent');
    }
  }

  #send(op, t, more) {
    const id = this.#nextID++;
    this.#requests.set(id, { op, topic: t.name });
    this.#socket.send(JSON.stringify({ op, id, topic: t.name, ...more }));
    return id;
  }

  #setStatus(state, retryAt, why) {
    this.status = { state, retryAt, why };
    this.#config.onStatus(this.status);
  }

  // ------------------------------------------------------------------------------------------------ messages

  #message(text) {
    this.#heardAt = Date.now();
    const receivedAt = performance.timeOrigin + performance.now();
    for (const line of text.split('\n')) {
      if (line === '') continue;
      let m;
      try {
        m = JSON.parse(line);
      } catch {
        this.#lost(this.#socket, 'the server sent something that is not JSON');
        return;
      }
      switch (m.op) {
        case 'event': this.#event(m, receivedAt); break;
        case 'subscribed': this.#subscribed(m); break;
        case 'heartbeat': this.#heartbeat(m); break;
        case 'reset': this.#reset(m); break;
        case 'hello': this.#welcome(m); break;
        case 'error': this.#refused(m); break;
        case 'unsubscribed': this.#requests.delete(m.id); break;
        case 'reconnect': this.#comeBackAt = Date.now() + m.in_ms; break; // the close that follows is obeyed with it
        // An op this client does not know is of a newer server, and may be ignored.
      }
    }
  }

  #welcome(m) {
    clearTimeout(this.#timers.hello);
    this.#hello = m;
    this.#openedAt = this.#heardAt;
    this.#comeBackAt = 0;
    this.stats.connects++;
    this.#setStatus('open', 0, '');
    for (const t of this.#topics.values()) this.#subscribe(t);
  }

  #subscribe(t) {
    if (!this.#hello || t.state !== 'idle') return;
    t.state = 'subscribing';
    t.request = this.#send('subscribe', t, { after: `${t.epoch}:${t.offset}` });
  }

  #subscribed(m) {
    const t = this.#topics.get(m.topic);
    this.#requests.delete(m.id);
    if (!t || t.state !== 'subscribing' || m.id !== t.request) return;
    t.state = 'live';
    t.replayUntil = m.head;
    if (t.subscribedBefore && m.head > t.offset) this.#gap(t, m.head);
    t.subscribedBefore = true;
  }

  #event(m, receivedAt) {
    this.stats.received++;
    const t = this.#topics.get(m.topic);
    if (!t || t.state !== 'live') return; // of a subscription that was given up
    if (m.offset <= t.offset) {
      this.stats.duplicates++;
      return;
    }
    if (m.offset > t.offset + 1) {
      this.#gap(t, m.offset);
      this.#send('unsubscribe', t);
      t.state = 'idle';
      this.#subscribe(t);
      return;
    }
    if (m.epoch !== t.snapshotEpoch && t.pending.size > 0) {
      // Ids of events die with their epoch: what the snapshot held cannot be recognised any more.
      this.#reread(t, 0, 'a new epoch');
      return;
    }
    t.offset = m.offset;
    t.epoch = m.epoch;
    const replayed = m.offset <= t.replayUntil;
    if (replayed) this.stats.replayed++;
    if (t.pending.delete(m.id)) {
      this.stats.skipped++;
    } else if (m.skip) {
      this.#reread(t, 0, 'an event that is not in the stream');
    } else {
      this.stats.applied++;
      this.#config.onEvent({ ...m, replayed, receivedAt });
    }
    if (t.healUntil && t.offset >= t.healUntil) {
      t.healUntil = 0;
      this.stats.healed++;
      this.#config.onHealing({ kind: 'healed', topic: t.name, offset: t.offset });
    }
  }

  #gap(t, until) {
    if (!t.healUntil) this.stats.gaps++;
    t.healUntil = Math.max(t.healUntil, until);
    this.#config.onHealing({ kind: 'gap', topic: t.name, after: t.offset, until });
  }

  #heartbeat(m) {
    for (const [name, head] of Object.entries(m.heads)) {
      const t = this.#topics.get(name);
      if (!t || t.state !== 'live' || head <= t.offset || t.behindTimer) continue;
      t.behindTimer = setTimeout(() => {
        t.behindTimer = 0;
        if (t.state !== 'live' || t.offset >= head) return;
        this.#gap(t, head);
        this.#reread(t, 0, 'the heartbeat stayed ahead');
      }, BEHIND_FOR);
    }
  }

  #reset(m) {
    const t = this.#topics.get(m.topic);
    if (!t || t.state === 'loading') return;
    this.stats.resets++;
    this.#config.onHealing({ kind: 'reset', topic: t.name, reason: m.reason, in_ms: m.in_ms });
    t.state = 'idle'; // the server has ended the subscription
    this.#reread(t, m.in_ms, `reset: ${m.reason}`);
  }

  #refused(m) {
    const request = this.#requests.get(m.id);
    this.#requests.delete(m.id);
    const t = request && this.#topics.get(request.topic);
    if (!t || request.op !== 'subscribe' || t.state !== 'subscribing' || m.id !== t.request) return;
    t.state = 'idle';
    switch (m.code) {
      case 'already_subscribed':
        this.#send('unsubscribe', t);
        this.#subscribe(t);
        break;
      case 'bad_cursor':
        this.#reread(t, 0, m.message);
        break;
      case 'forbidden':
      case 'bad_topic':
        t.state = 'refused';
        this.#config.onHealing({ kind: 'refused', topic: t.name, reason: m.message });
        break;
      default: // unavailable, too_many: again, a little later
        setTimeout(() => this.#subscribe(t), 500 + Math.random() * 1500);
    }
  }

  // ------------------------------------------------------------------------------------------------ snapshots

  #reread(t, inMS, why) {
    if (this.#hello && (t.state === 'live' || t.state === 'subscribing')) this.#send('unsubscribe', t);
    t.state = 'loading';
    t.dueAt = Date.now() + inMS;
    this.stats.rereads++;
    this.#config.onHealing({ kind: 'reread', topic: t.name, why });
    this.#planReread();
  }

  /** One read for all topics that wait for one, when the last of them is due: resets come in flocks. */
  #planReread() {
    if (!this.#running || this.#reading) return;
    const waiting = [...this.#topics.values()].filter((t) => t.state === 'loading');
    if (waiting.length === 0) return;
    clearTimeout(this.#timers.reread);
    const due = Math.max(...waiting.map((t) => t.dueAt));
    this.#timers.reread = setTimeout(() => this.#readNow(), Math.max(0, due - Date.now()));
  }

  async #readNow() {
    const names = [...this.#topics.values()].filter((t) => t.state === 'loading').map((t) => t.name);
    if (names.length === 0) return;
    const reading = new AbortController();
    this.#reading = reading;
    const limit = setTimeout(() => reading.abort(), SNAPSHOT_WITHIN);
    let pause = 0;
    try {
      const { positions, state } = await this.#config.snapshot(names, reading.signal);
      if (!this.#running) return;
      const missing = names.find((name) => !positions.some((p) => p.topic === name));
      if (missing) throw new Error(`the snapshot has no position of ${missing}`);
      this.#rereadAttempt = 0;
      for (const p of positions) {
        const t = this.#topics.get(p.topic);
        const cursor = parseCursor(p.cursor);
        t.epoch = cursor.epoch;
        t.offset = cursor.offset;
        t.snapshotEpoch = p.epoch;
        t.pending = new Set(p.pending);
      }
      this.#config.onSnapshot(state, positions);
      for (const p of positions) {
        const t = this.#topics.get(p.topic);
        if (t.healUntil && t.offset >= t.healUntil) {
          t.healUntil = 0;
          this.stats.healed++;
          this.#config.onHealing({ kind: 'healed', topic: t.name, offset: t.offset });
        }
        t.state = 'idle';
        this.#subscribe(t);
      }
    } catch (err) {
      if (!this.#running) return;
      pause = err.retryAfter ?? Math.random() * Math.min(RETRY_MOST, RETRY_FIRST * 2 ** this.#rereadAttempt++);
      this.#config.onHealing({ kind: 'unread', why: String(err.message || err), in_ms: pause });
    } finally {
      clearTimeout(limit);
      this.#reading = null;
    }
    for (const t of this.#topics.values()) {
      if (t.state === 'loading') t.dueAt = Math.max(t.dueAt, Date.now() + pause);
    }
    this.#planReread();
  }
}
