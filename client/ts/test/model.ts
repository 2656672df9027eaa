// A model of everything around one machine: a database that commits, sequences and goes back in time, replicas that lag,
// a server that checks cursors, a network that loses, and a page that reloads. Random, but a function of the seed.

import type { Held, Machine, Ports } from "../src/machine.js";
import { formatCursor, parseCursor, type EventFrame } from "../src/wire.js";

/** What the events add up to: applied twice, or not at all, it is wrong for good. */
export interface Sum {
  readonly sum: number;
  readonly count: number;
  /** Where the page conflates, what it is instead: the latest value of each key. */
  readonly latest: readonly number[];
}
const KEYS = 3;
const keyOf = (value: number): number => value % KEYS;
interface Row {
  id: number;
  value: number; // 0: nothing to apply, shown as skip
  epoch: string; // of the sequencing
}
/** The database at one moment. Never changed. */
interface DB {
  rows: readonly Row[];
  outbox: readonly Row[];
  nextID: number;
  epochs: readonly string[]; // the lineage; the last is current
}
type Msg =
  | { op: "subscribed"; id: number; epoch: string; head: number }
  | { op: "event"; f: EventFrame }
  | { op: "reset"; ms: number }
  | { op: "heartbeat"; epoch: string; head: number | undefined }
  | { op: "unsubscribed"; id: number }
  | { op: "error"; id: number; code: string };

export type MachineConstructor = new (ports: Ports<Sum>) => Machine<Sum>;

const ordinal = (epoch: string): number => parseInt(epoch);

export class Sim {
  readonly faults: Record<string, number> = {};
  resubscribes = 0;
  reads = 0;
  #state: number;
  readonly #Machine: MachineConstructor;
  #m!: Machine<Sum>;
  #life = 0; // of the machine: a reloaded page forgets its timers and reads
  #db: DB = { rows: [], outbox: [], nextID: 1, epochs: ["1-aaaa"] };
  #past: DB[] = [];
  #ordinal = 1;
  #calm = false;
  readonly #faultless: boolean;
  readonly #conflates: boolean; // every third
  #kept: Held<Sum> | undefined;

  // The page's end.
  #timer: { n: number; life: number } | undefined;
  #read: { n: number; life: number; db: DB | undefined } | undefined;
  #id = 0;
  // The connection, and the server's end.
  #up = false;
  #queue: Msg[] = []; // to the page
  // db: the history that the node believes in; window: what is yet to be sent of what belongs together, from offset on
  #sub: { epoch: string; offset: number; db: DB; window: EventFrame[] } | undefined;

  constructor(seed: number, M: MachineConstructor) {
    this.#state = seed >>> 0 || 1;
    this.#faultless = seed % 5 === 0;
    this.#conflates = seed % 3 === 0;
    this.#Machine = M;
    this.#reload(undefined);
  }

  /** Runs a schedule with two settle points. Returns what went wrong. Every fifth has no faults, and nothing to heal. */
  run(): string {
    this.#calm = this.#faultless;
    for (let part = 0; part < 2; part++) {
      this.#calm = this.#faultless;
      const steps = 30 + this.#int(70);
      for (let i = 0; i < steps; i++) this.#step();
      const wrong = this.#settle();
      if (wrong) return wrong;
    }
    if (this.#faultless && this.resubscribes + this.reads > 2) {
      return `healed without a fault: ${this.reads} snapshots, ${this.resubscribes} subscriptions`;
    }
    return "";
  }

  // ------------------------------------------------------------------------------------------------------------

  #random(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }
  #int(n: number): number {
    return Math.floor(this.#random() * n);
  }
  #p(chance: number): boolean {
    return this.#random() < chance;
  }
  #fault(name: string, chance: number): boolean {
    if (this.#calm || !this.#p(chance)) return false;
    this.faults[name] = (this.faults[name] ?? 0) + 1;
    return true;
  }

  #reload(kept: Held<Sum> | undefined): void {
    const life = ++this.#life;
    this.#timer = this.#read = this.#sub = undefined;
    this.#queue = [];
    this.#up = false;
    this.#m = new this.#Machine({
      rereadSkipped: false,
      read: (n) => {
        this.reads++;
        this.#read = { n, life, db: undefined };
      },
      subscribe: (after) => this.#subscribe(after),
      unsubscribe: () => {
        const id = ++this.#id;
        if (this.#sub) this.#queue.push({ op: "unsubscribed", id });
        else this.#queue.push({ op: "error", id, code: "not_subscribed" });
        this.#sub = undefined;
        return id;
      },
      wait: (n) => (this.#timer = { n, life }),
      apply: (state, f) => {
        if (this.#fault("apply throws", 0.03)) throw new Error("no");
        return this.#add(state, f.data as number);
      },
      passed: () => {},
      replaced: () => {},
    });
    this.#m.start(kept);
  }

  // ---- the database

  #add({ sum, count, latest }: Sum, value: number): Sum {
    if (value === 0) return { sum, count, latest };
    if (!this.#conflates) return { sum: sum + value, count: count + 1, latest };
    return { sum, count, latest: latest.map((v, key) => (key === keyOf(value) ? value : v)) };
  }
  #truth(db: DB): Sum {
    return [...db.rows, ...db.outbox].reduce<Sum>((s, { value }) => this.#add(s, value), { sum: 0, count: 0, latest: Array(KEYS).fill(0) });
  }
  #set(db: DB): void {
    this.#past.push(this.#db);
    if (this.#past.length > 14) this.#past.shift();
    this.#db = db;
  }
  #commit(): void {
    const db = this.#db;
    const value = this.#p(0.1) ? 0 : 1 + this.#int(1e6);
    this.#set({ ...db, outbox: [...db.outbox, { id: db.nextID, value, epoch: "" }], nextID: db.nextID + 1 });
  }
  #sequence(most: number): void {
    const db = this.#db;
    if (db.outbox.length === 0) return;
    const epoch = db.epochs.at(-1)!;
    const n = Math.min(most, db.outbox.length);
    const rows = [...db.rows, ...db.outbox.slice(0, n).map((r) => ({ ...r, epoch }))];
    this.#set({ ...db, rows, outbox: db.outbox.slice(n) });
  }
  #goBack(): void {
    const back = this.#past[this.#int(this.#past.length)];
    if (!back) return;
    const epoch = `${++this.#ordinal}-${(0x1000 + this.#int(0xefff)).toString(16)}`;
    this.#set({ ...back, epochs: [...back.epochs, epoch] });
  }

  // ---- the server

  #why(epoch: string, offset: number): boolean {
    const { rows, epochs } = this.#db;
    if (!epochs.includes(epoch) || offset > rows.length) return false;
    return offset === 0 || ordinal(rows[offset - 1]!.epoch) <= ordinal(epoch);
  }
  #subscribe(after: string): number {
    this.resubscribes++;
    const id = ++this.#id;
    const { epoch, offset } = parseCursor(after)!;
    if (this.#sub) this.#queue.push({ op: "error", id, code: "already_subscribed" });
    else if (this.#fault("unavailable", 0.05)) this.#queue.push({ op: "error", id, code: "unavailable" });
    else if (!this.#why(epoch, offset)) this.#queue.push({ op: "reset", ms: this.#int(2) * 100 });
    else {
      this.#sub = { epoch: this.#db.epochs.at(-1)!, offset, db: this.#db, window: [] };
      this.#queue.push({ op: "subscribed", id, epoch: this.#sub.epoch, head: this.#db.rows.length });
    }
    return id;
  }
  /** The node hears of the database: new rows, or a new history. */
  #hear(): void {
    const sub = this.#sub;
    if (!sub) return;
    if (sub.db.epochs.at(-1) !== this.#db.epochs.at(-1)) {
      if (!this.#why(sub.epoch, sub.offset)) {
        this.#sub = undefined;
        this.#queue.push({ op: "reset", ms: 100 });
        return;
      }
      sub.epoch = this.#db.epochs.at(-1)!;
      sub.window = []; // it goes on from before that
    }
    sub.db = this.#db;
  }
  #deliver(most: number): void {
    const sub = this.#sub;
    if (!sub) return;
    for (let i = 0; i < most && (sub.window.length > 0 || sub.offset < sub.db.rows.length); i++) {
      if (sub.window.length === 0) sub.window = this.#window(sub.db.rows, sub.offset, this.#conflates && this.#p(0.3) ? 10 : 1);
      const f = sub.window.shift()!;
      if (sub.window.length === 0) sub.offset = f.offset;
      if (!this.#fault("frame lost", 0.03)) this.#queue.push({ op: "event", f });
      if (this.#fault("frame twice", 0.03)) this.#queue.push({ op: "event", f });
    }
  }
  /** What follows an offset, up to so many: the latest of each key, and what is shown as skip. */
  #window(all: readonly Row[], from: number, most: number): EventFrame[] {
    const rows = all.slice(from, from + most);
    const window: EventFrame[] = [];
    let sent = from;
    rows.forEach(({ id, value, epoch }, i) => {
      if (value !== 0 && rows.slice(i + 1).some((r) => r.value !== 0 && keyOf(r.value) === keyOf(value))) return;
      const offset = from + i + 1;
      const f: EventFrame = { op: "event", topic: "t", epoch, offset, id, type: "x", at: "", data: value };
      if (value === 0) f.skip = true;
      if (offset - 1 > sent) f.conflated = offset - 1 - sent;
      if (i < rows.length - 1) f.more = true;
      window.push(f);
      sent = offset;
    });
    return window;
  }
  #heartbeat(): void {
    if (!this.#up) return;
    if (this.#faultless) {
      while (this.#queue.length > 0) this.#receive(); // a page,
      this.#hear(); // a server, and a network that is faster than heartbeats
      this.#deliver(100);
    }
    const sub = this.#sub;
    const head = sub && sub.db.epochs.at(-1) === this.#db.epochs.at(-1) ? Math.max(this.#db.rows.length, sub.offset) : undefined;
    this.#queue.push({ op: "heartbeat", epoch: (sub?.db ?? this.#db).epochs.at(-1)!, head });
  }

  // ---- the page

  #receive(): void {
    const m = this.#queue.shift();
    if (!m) return;
    if (m.op === "subscribed") this.#m.subscribed(m.id, m.epoch, m.head);
    else if (m.op === "event") this.#m.event(m.f);
    else if (m.op === "reset") this.#m.reset(m.ms);
    else if (m.op === "heartbeat") this.#m.heartbeat(m.epoch, m.head);
    else if (m.op === "unsubscribed") this.#m.unsubscribed(m.id);
    else this.#m.refused(m.id, m.code);
  }
  #snapshot(): void {
    const r = this.#read;
    if (!r) return;
    if (!r.db) {
      r.db = this.#db;
      if (this.#past.length > 0 && this.#fault("stale snapshot", 0.3)) r.db = this.#past.at(-1 - this.#int(Math.min(6, this.#past.length)))!;
      return;
    }
    if (!this.#fault("slow snapshot", 0.2)) this.#read = undefined;
    if (this.#fault("snapshot fails", 0.1)) return this.#m.unread(r.n);
    const { rows, outbox, epochs } = r.db;
    const epoch = epochs.at(-1)!;
    this.#m.snapshot(r.n, {
      state: this.#truth(r.db),
      cursor: { epoch: rows.at(-1)?.epoch ?? epoch, offset: rows.length },
      pending: outbox.map((o) => o.id),
      epoch,
    });
  }
  #due(): void {
    const t = this.#timer;
    this.#timer = undefined;
    if (t?.life === this.#life) this.#m.due(t.n);
  }
  #cut(): void {
    if (!this.#up) return;
    this.#up = false;
    this.#queue = [];
    this.#sub = undefined;
    this.#m.down();
  }
  #connect(): void {
    if (this.#up) return;
    this.#up = true;
    this.#m.up();
  }

  #step(): void {
    if (this.#fault("connection cut", 0.02)) return this.#cut();
    if (this.#fault("database goes back", 0.015)) return this.#goBack();
    if (this.#fault("page reloads", 0.01)) return this.#reload(this.#kept);
    if (this.#sub && this.#fault("subscription lost", 0.005)) return void (this.#sub = undefined);
    if (this.#fault("reread", 0.005)) return this.#m.reread();
    if (this.#fault("probe", 0.005)) return void this.#m.probe();
    if (this.#p(0.05)) this.#kept = this.#m.held;
    switch (this.#int(16)) {
      case 0: case 1: return this.#commit();
      case 2: return this.#sequence(1 + this.#int(4));
      case 3: return this.#hear();
      case 4: case 5: return this.#deliver(1 + this.#int(4));
      case 6: case 7: case 8: case 9: return this.#receive();
      case 10: case 11: case 12: return this.#snapshot();
      case 13: return this.#p(0.3) ? this.#heartbeat() : this.#due();
      case 14: return this.#due();
      default: return this.#connect();
    }
  }

  /** Faults end, and everything gets its turn: then the page must show what the database holds. */
  #settle(): string {
    this.#calm = true;
    const before = this.resubscribes + this.reads;
    for (let round = 0; round < 40; round++) {
      this.#sequence(100);
      this.#connect();
      this.#hear();
      this.#deliver(100);
      while (this.#queue.length > 0) this.#receive();
      this.#snapshot();
      this.#snapshot();
      this.#due();
      this.#heartbeat();
      while (this.#queue.length > 0) this.#receive();
      if (round > 3 && this.#wrong() === "") {
        const healed = this.resubscribes + this.reads - before;
        return healed > 25 ? `storm: ${healed} requests to settle` : "";
      }
    }
    return this.#wrong();
  }
  #wrong(): string {
    const { held } = this.#m;
    if (!held) return "no state";
    const truth = this.#truth(this.#db);
    const at = formatCursor(held.cursor);
    if (!this.#m.current || held.cursor.offset !== this.#db.rows.length) return `not current: ${this.#m.phase} at ${at}, head ${this.#db.rows.length}`;
    if (held.state.sum !== truth.sum || held.state.count !== truth.count || String(held.state.latest) !== String(truth.latest)) {
      return `wrong state at ${at}: ${held.state.count} events, ${truth.count} committed (sum off by ${held.state.sum - truth.sum})`;
    }
    return "";
  }
}
