// One topic as a state machine: what to do with a snapshot, a frame, a lost connection. It does no I/O, has no clock
// and no randomness; feed.ts gives it Ports. The rules are those of docs/protocol.md, and each has a mutation in
// test/model.test.ts that shows what breaks without it.

import { formatCursor, isForeign, isInteger, type Cursor, type EventFrame } from "./wire.js";

/**
 * A state, and exactly how to go on from it. The two are one object, which is replaced and never changed: whoever has
 * a state has the cursor that belongs to it.
 */
export interface Held<S> {
  readonly state: S;
  /** The last event that the state contains without a hole before it. */
  readonly cursor: Cursor;
  /** Ids of later events that it contains all the same: skipped, once, when they arrive. */
  readonly pending: readonly number[];
  /** The epoch of the snapshot. `pending` means nothing in another: ids are reused by another history. */
  readonly epoch: string;
}

/** What the machine asks of the world. Whatever is answered, is answered by calling the machine. */
export interface Ports<S> {
  /** Take a snapshot. Answer with `snapshot(n, …)` or `unread(n, …)`. An earlier read is void. */
  read(n: number): void;
  /** Send subscribe, return the id of the request. */
  subscribe(after: string): number;
  /** Send unsubscribe, return the id of the request. */
  unsubscribe(): number;
  /** Call `due(n)` after `ms` and, from the second attempt on, a random time that grows with `attempt`. */
  wait(n: number, ms: number, attempt: number): void;
  /** The reducer. May throw: the state then stays what it was, and the snapshot is read again. */
  apply(state: S, event: EventFrame): S;
  /** An event has become part of the state, is to be skipped, or (`held`) was part of it already. */
  passed(event: EventFrame, held: boolean): void;
  /** The snapshot has replaced the state. */
  replaced(): void;
  /** Whether a skipped event makes the snapshot worth reading again. */
  readonly rereadSkipped: boolean;
}

/**
 * - `reading` a snapshot is on its way
 * - `waiting` until it is time to read or to subscribe again
 * - `idle` there is a state, but no connection
 * - `asked` subscribe was sent
 * - `live` events arrive
 * - `failed` subscribe was refused for good; the next connection tries again
 * - `closed`
 */
export type Phase = "reading" | "waiting" | "idle" | "asked" | "live" | "failed" | "closed";

/** How many times a topic that makes no progress subscribes again, before it reads the snapshot again. */
const RESUBSCRIBES = 2;

export class Machine<S> {
  phase: Phase = "idle";
  held: Held<S> | undefined;
  /** The newest offset known to exist. */
  head = 0;

  readonly #ports: Ports<S>;
  #connected = false;
  #n = 0; // of the last read or wait: older answers are void
  #then: "read" | "subscribe" = "read"; // what phase waiting waits for
  #asked = 0; // id of the subscribe that is not answered
  #leaving = 0; // id of the unsubscribe that is not answered: frames before its answer belong to the old subscription
  #stuck = -1; // the offset at the last heartbeat whose head was another
  #strikes = 0; // healings since the last sign of progress
  #failures = 0; // snapshots that could not be read, in a row
  #together: EventFrame[] = []; // have arrived, and are to be applied with what comes next: others before them were left out

  constructor(ports: Ports<S>) {
    this.#ports = ports;
  }

  /** Whether everything that is known to exist is in the state. */
  get current(): boolean {
    return this.phase === "live" && this.held!.cursor.offset >= this.head;
  }

  /** Begins, from a state that was kept, if there is one. */
  start(kept?: Held<S>): void {
    this.held = kept;
    if (kept) this.#subscribe();
    else this.#read();
  }

  close(): void {
    this.#leave();
    this.phase = "closed";
    this.#n++;
  }

  // ------------------------------------------------------------------------------------------------ the snapshot

  snapshot(n: number, held: Held<S>): void {
    if (this.phase !== "reading" || n !== this.#n) return;
    this.held = Object.freeze(held);
    this.#failures = 0;
    this.phase = "idle";
    this.#ports.replaced();
    this.#subscribe();
  }

  /** The snapshot could not be read; not to be tried again before `ms`. */
  unread(n: number, ms = 0): void {
    if (this.phase !== "reading" || n !== this.#n) return;
    this.#wait("read", ms, ++this.#failures + 1);
  }

  /** Reads the snapshot again, because somebody found the state wrong. */
  reread(): void {
    const due = this.phase === "reading" || (this.phase === "waiting" && this.#then === "read");
    if (this.phase !== "closed" && !due) this.#again("read");
  }

  /** Tries at once what waits. */
  retry(): void {
    if (this.phase === "waiting") this.due(this.#n);
    else if (this.phase === "failed") this.#resume();
  }

  // ---------------------------------------------------------------------------------------------- the connection

  up(): void {
    this.#connected = true;
    if (this.phase === "failed") this.phase = "idle";
    this.#subscribe();
  }

  down(): void {
    this.#connected = false;
    this.#leaving = 0;
    if (this.phase === "asked" || this.phase === "live" || (this.phase === "waiting" && this.#then === "subscribe")) {
      this.phase = "idle";
    }
  }

  due(n: number): void {
    if (this.phase !== "waiting" || n !== this.#n) return;
    if (this.#then === "read") this.#read();
    else this.#resume();
  }

  /** Subscribes again, to see whether anybody is there. False if there is no subscription. */
  probe(): boolean {
    if (this.phase !== "live" || this.#leaving) return false;
    this.#leave();
    this.#resume();
    return true;
  }

  // ------------------------------------------------------------------------------------------------- the frames

  subscribed(id: number, epoch: string, head: number): void {
    if (this.phase !== "asked" || id !== this.#asked) return;
    if (this.#void(epoch)) return;
    this.phase = "live";
    this.head = head;
    this.#leaving = 0;
    this.#stuck = -1;
  }

  event(f: EventFrame): void {
    if (this.phase !== "live" || this.#leaving) return;
    const held = this.held!;
    const after = f.offset - 1 - (f.conflated ?? 0);
    if (after === held.cursor.offset) this.#together = []; // the server has begun again from here
    const reached = this.#reached;
    if (f.offset <= reached.offset) return;
    if (after !== reached.offset || isForeign(f.epoch, reached.epoch)) return this.#again("subscribe");
    if (this.#void(f.epoch)) return;
    this.#together.push(f);
    if (f.more) return;

    const events = this.#together.splice(0);
    let { state, pending } = held;
    try {
      for (const e of events) {
        if (pending.includes(e.id)) pending = pending.filter((id) => id !== e.id);
        else if (!e.skip) state = this.#ports.apply(state, e);
        else if (this.#ports.rereadSkipped) throw e;
      }
    } catch {
      return this.#again("read");
    }
    this.held = Object.freeze({ ...held, state, pending, cursor: { epoch: f.epoch, offset: f.offset } });
    for (const e of events) this.#ports.passed(e, held.pending.includes(e.id));
  }

  /** Of the last event that has arrived. */
  get #reached(): Cursor {
    return this.#together.at(-1) ?? this.held!.cursor;
  }

  reset(ms: number): void {
    if ((this.phase !== "asked" && this.phase !== "live") || this.#leaving) return;
    this.phase = "idle"; // the server has ended the subscription
    this.#again("read", ms);
  }

  heartbeat(epoch: string, head: unknown): void {
    if (this.phase !== "asked" && this.phase !== "live") return;
    const live = this.phase === "live";
    if (live && this.#void(epoch)) return;
    const { offset } = this.#reached;
    if (live && isInteger(head)) this.head = head as number;
    if (live && head === offset) {
      this.#stuck = -1;
      this.#strikes = 0;
    } else if (this.#stuck === offset) {
      this.#again("subscribe"); // two heartbeats, and not an event: something was lost, or the subscription was
    } else {
      if (this.#stuck >= 0) this.#strikes = 0;
      this.#stuck = offset;
    }
  }

  unsubscribed(id: number): void {
    if (id === this.#leaving) this.#leaving = 0;
  }

  /** A request was refused. Returns whether that ends the attempt. */
  refused(id: number, code: string): boolean {
    if (id === this.#leaving) this.#leaving = 0; // not_subscribed: a reset was on its way
    else if (this.phase === "asked" && id === this.#asked) {
      switch (code) {
        case "unavailable":
          this.phase = "idle";
          this.#wait("subscribe", 0, ++this.#strikes + 1);
          break;
        case "already_subscribed":
          this.#again("subscribe");
          break;
        case "bad_cursor":
          this.phase = "idle";
          this.#again("read");
          break;
        default:
          this.phase = "failed";
          return true;
      }
    }
    return false;
  }

  // ------------------------------------------------------------------------------------------------------------

  /** Pending ids die with their epoch: then the snapshot must be read again. */
  #void(epoch: string): boolean {
    const { pending, epoch: own } = this.held!;
    if (pending.length === 0 || epoch === own) return false;
    this.#again("read");
    return true;
  }

  #read(): void {
    this.phase = "reading";
    this.#ports.read(++this.#n);
  }

  #resume(): void {
    this.phase = "idle";
    this.#subscribe();
  }

  #subscribe(): void {
    if (this.phase !== "idle" || !this.#connected || !this.held) return;
    this.phase = "asked";
    this.#together = [];
    this.#stuck = -1;
    this.#asked = this.#ports.subscribe(formatCursor(this.held.cursor));
  }

  #leave(): void {
    if (this.#connected && (this.phase === "asked" || this.phase === "live")) this.#leaving = this.#ports.unsubscribe();
  }

  /** Heals: at once the first time, later with growing pauses, and by the snapshot if subscribing does not help. */
  #again(then: "read" | "subscribe", ms = 0): void {
    this.#leave();
    const attempt = ++this.#strikes;
    if (attempt > RESUBSCRIBES) then = "read";
    if (ms > 0 || attempt > 1) this.#wait(then, ms, attempt);
    else if (then === "read") this.#read();
    else this.#resume();
  }

  #wait(then: "read" | "subscribe", ms: number, attempt: number): void {
    this.phase = "waiting";
    this.#then = then;
    this.#ports.wait(++this.#n, ms, attempt);
  }
}
