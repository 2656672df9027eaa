// Counts what comes through the page's socket, and tells of holes and resets: for people. The client needs none of it.
//
//   const tap = new Tap((what) => {});       // {kind: 'gap' | 'reset', topic, …}
//   connect({ url, WebSocket: tap.WebSocket });

export class Tap {
  /** Never reset. A gap is a stretch of events that a subscription or a message shows to be missing. */
  stats = { received: 0, replayed: 0, duplicates: 0, gaps: 0, healed: 0, resets: 0, connects: 0, losses: 0 };
  #topics = new Map(); // name → {offset, replayUntil, healUntil}
  #tell;

  constructor(tell) {
    this.#tell = tell;
    const tap = this;
    this.WebSocket = class extends WebSocket {
      constructor(url, protocol) {
        super(url, protocol);
        let greeted = false;
        this.addEventListener('message', (e) => {
          for (const line of e.data.split('\n')) {
            let f;
            try {
              f = JSON.parse(line);
            } catch {
              continue; // the client says so
            }
            if (f.op === 'hello') greeted = Boolean(++tap.stats.connects);
            else tap.#frame(f);
          }
        });
        this.addEventListener('close', () => greeted && tap.stats.losses++);
      }
    };
  }

  /** Whether an event came from a replay: after a reconnect, or between snapshot and subscription. */
  isReplayed(event) {
    return event.offset <= this.#topics.get(event.topic).replayUntil;
  }

  #frame(f) {
    const t = this.#topics.get(f.topic);
    if (f.op === 'subscribed') {
      if (t && f.head > f.after) this.#gap(f.topic, t, f.after, f.head);
      this.#topics.set(f.topic, { offset: f.after, replayUntil: f.head, healUntil: t?.healUntil ?? 0 });
    } else if (f.op === 'reset') {
      this.stats.resets++;
      this.#tell({ kind: 'reset', ...f });
    } else if (f.op === 'event' && t) {
      this.stats.received++;
      if (f.offset <= t.offset) this.stats.duplicates++;
      else {
        if (f.offset > t.offset + 1) this.#gap(f.topic, t, t.offset, f.offset);
        if (f.offset <= t.replayUntil) this.stats.replayed++;
        t.offset = f.offset;
        if (t.healUntil && t.offset >= t.healUntil) {
          t.healUntil = 0;
          this.stats.healed++;
          this.#tell({ kind: 'healed', topic: f.topic });
        }
      }
    }
  }

  #gap(topic, t, after, until) {
    if (!t.healUntil) this.stats.gaps++;
    t.healUntil = Math.max(t.healUntil, until);
    this.#tell({ kind: 'gap', topic, after, until });
  }
}
