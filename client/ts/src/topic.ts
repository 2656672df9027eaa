// One topic of a feed: a machine with its snapshot source, its reducer, its optimistic patches and its listeners.

import { jitter, type Env } from "./env.js";
import { CommitcastError, guard, type ErrorKind } from "./errors.js";
import { Machine, type Held } from "./machine.js";
import { check, read, type Snapshot, type SnapshotSource, type Unread } from "./snapshot.js";
import { formatCursor, type Event, type EventFrame } from "./wire.js";

/**
 * - `loading` no state yet
 * - `live` the state holds every event that is known to exist
 * - `catching-up` the state is true of an earlier moment, and events are on their way
 * - `offline` there is no connection; it is being made
 * - `failed` something needs somebody: `error` says what
 */
export type Status = "loading" | "live" | "catching-up" | "offline" | "failed";

/** What a screen shows of a topic: replaced, never changed. */
export type View<S> = (
  | { readonly status: "live" | "catching-up"; readonly state: S }
  | { readonly status: "loading"; readonly state: undefined }
  | { readonly status: "offline" | "failed"; readonly state: S | undefined }
) & {
  /** The last event in `state`. What a writer saw. */
  readonly cursor: string | undefined;
  /** Why the status is `failed`, or why the snapshot could not be read the last time. */
  readonly error: CommitcastError | undefined;
  /** Whether `state` contains what `act` expects and the database has not confirmed. */
  readonly optimistic: boolean;
};

/** Keeps states over a reload. Package `@commitcast/client/persist` has one for IndexedDB. */
export interface Store {
  /** Must answer within seconds, whatever happens: nothing is shown before. */
  load(key: string): Promise<Snapshot<unknown> | undefined>;
  /** Called with each state that is shown. Must keep state and cursor together. Pacing is the store's, and so are errors. */
  save(key: string, snapshot: Snapshot<unknown>): void;
}

export interface TopicOptions<S, D = unknown> {
  /** Where the state is read. Its time limit is 30 s. */
  snapshot: SnapshotSource<S>;
  /**
   * Returns the state with one event in it. Called exactly once for each event that the snapshot does not hold, in
   * order. Return a new state and leave the old one as it was.
   */
  apply: (state: S, event: Event<D>) => S;
  /**
   * Names this way of reading the topic; default "". A second `topic()` of the same name and key shares the first one's
   * state, and its options; with another key it throws: a connection carries a topic once.
   */
  key?: string;
  /** Where the state is kept over a reload. */
  store?: Store;
  /**
   * Leaves out, whenever this page is behind by more than a message, each event that has a later one of the same key. Choose
   * it if an event holds all there is to know of its key. What is left is applied at once, so that a view is still that of
   * one moment. Not over a shared connection (`share`), where others may want all of them.
   */
  conflate?: boolean;
  /**
   * What to do about an event that could not be shown in a frame: `advance` past it (default) or `reread` the
   * snapshot. Choose `reread` if such an event may change the state.
   */
  skipped?: "advance" | "reread";
  /** Called after an event became part of the state: for a sound or a notice. Not for what the snapshot held. */
  onevent?: (event: Event<D>, state: S) => void;
}

/** A change that is shown on top of a state, before the database has confirmed it. `act` makes them. */
export interface Layer<S> {
  /** Whether it changes anything: another layer only watches. */
  readonly optimistic: boolean;
  change(state: S): S;
  /** An event became part of the state below. True: the layer has done its work. */
  passed(event: Event): boolean;
  /** A snapshot replaced the state below. True: the layer goes. */
  replaced(): boolean;
}

/** What a topic needs of its feed. */
export interface Host {
  readonly env: Env;
  readonly fetch: typeof globalThis.fetch;
  /** How the connection is: `failed` with the reason, `lost`, or neither. */
  readonly trouble: { failed?: CommitcastError | undefined; lost: boolean };
  request(op: "subscribe" | "unsubscribe", topic: string, after?: string, conflate?: boolean): number;
  report(error: CommitcastError): void;
}

const SNAPSHOT_WITHIN = 30_000;
/** How healing and reading are spaced: first and longest pause. */
const AGAIN_BASE = 250;
const AGAIN_CAP = 30_000;
export class Subject<S> {
  readonly name: string;
  readonly key: string;
  readonly machine: Machine<S>;
  view: View<S> = { status: "loading", state: undefined, cursor: undefined, error: undefined, optimistic: false };
  /** Those who follow it: each is to be closed. */
  readonly users = new Set<{ close(): void }>();

  readonly #host: Host;
  readonly #options: TopicOptions<S, any>;
  readonly #listeners = new Set<(view: View<S>) => void>();
  #layers: readonly Layer<S>[] = [];
  #shown: { held: Held<S> | undefined; layers: readonly Layer<S>[]; state: S | undefined } | undefined;
  #error: CommitcastError | undefined;
  #reading: AbortController | undefined;
  #timer: unknown;

  constructor(name: string, options: TopicOptions<S, any>, host: Host) {
    this.name = name;
    this.key = options.key ?? "";
    this.#host = host;
    this.#options = options;
    this.machine = new Machine<S>({
      rereadSkipped: options.skipped === "reread",
      read: (n) => void this.#read(n),
      subscribe: (after) => host.request("subscribe", name, after, options.conflate),
      unsubscribe: () => host.request("unsubscribe", name),
      wait: (n, ms, attempt) => {
        const pause = ms + (attempt > 1 ? jitter(host.env, AGAIN_BASE, attempt - 1, AGAIN_CAP) : 0);
        host.env.clearTimeout(this.#timer);
        this.#timer = host.env.setTimeout(() => {
          this.machine.due(n);
          this.publish();
        }, pause);
      },
      apply: (state, event) => this.#apply(state, event),
      passed: (event, held) => this.#passed(event, held),
      replaced: () => this.#filter((layer) => layer.replaced()),
    });
  }

  async start(): Promise<void> {
    let kept: Held<S> | undefined;
    try {
      const snapshot = await this.#options.store?.load(this.#storeKey);
      if (snapshot) kept = check(snapshot as Snapshot<S>);
    } catch (thrown) {
      this.fail("store", "what was kept is of no use", thrown);
    }
    if (this.machine.phase === "closed") return;
    this.machine.start(kept);
    this.publish();
  }

  close(): void {
    this.machine.close();
    this.#reading?.abort();
    this.#host.env.clearTimeout(this.#timer);
    this.#layers = [];
    this.#listeners.clear();
  }

  listen(listener: (view: View<S>) => void): () => void {
    const own = (view: View<S>): void => listener(view);
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  fail(kind: ErrorKind, message: string, cause?: unknown, final = false): CommitcastError {
    const error = new CommitcastError(kind, message, { topic: this.name, cause, final });
    this.#host.report(error);
    return error;
  }

  /** The server refused a request of this topic. */
  refused(id: number, code: string, message: string): void {
    if (this.machine.refused(id, code)) this.#error = this.fail("refused", `${code}: ${message}`, undefined, true);
  }

  /** Shows what there is to show, if it has changed. */
  publish(): void {
    const { machine } = this;
    const { held } = machine;
    const { failed, lost } = this.#host.trouble;
    if (machine.phase === "closed") return;
    if (machine.phase !== "failed" && machine.phase !== "reading" && machine.phase !== "waiting") this.#error = undefined;
    const error = failed ?? this.#error;
    const moved = this.#shown?.held !== held;
    if (moved || this.#shown?.layers !== this.#layers) {
      const state = held && this.#layered(held.state);
      this.#shown = { held, layers: this.#layers, state };
    }
    const { state } = this.#shown!;
    const status: Status =
      error?.final ? "failed"
      : lost ? "offline"
      : !held ? "loading"
      : machine.current ? "live"
      : "catching-up";
    const optimistic = this.#layers.some((layer) => layer.optimistic);
    const cursor = held && formatCursor(held.cursor);
    const old: any = this.view;
    if (moved && held) {
      const { pending, epoch } = held; // and the state below the layers: they are nobody's but this page's
      this.#call("store.save", () =>
        this.#options.store?.save(this.#storeKey, { state: held.state, cursor: cursor!, pending, epoch }));
    }
    const next: any = { status, state, cursor, error, optimistic };
    if (Object.keys(next).every((field) => next[field] === old[field])) return;
    this.view = Object.freeze(next);
    for (const listener of [...this.#listeners]) this.#call("a listener", () => listener(this.view));
  }

  /** Shows a change on top of the state. Returns how to take it away. */
  layer(layer: Layer<S>): () => void {
    this.#layers = [...this.#layers, layer];
    this.publish();
    return () => {
      this.#filter((other) => other === layer);
      this.publish();
    };
  }

  // ------------------------------------------------------------------------------------------------------------

  async #read(n: number): Promise<void> {
    const { env, fetch } = this.#host;
    this.#reading?.abort();
    const reading = (this.#reading = new AbortController());
    const timer = env.setTimeout(() => reading.abort(new Error("longer than 30 s")), SNAPSHOT_WITHIN);
    try {
      const held = await read(this.#options.snapshot, fetch, reading.signal);
      this.machine.snapshot(n, held);
    } catch (thrown) {
      if (reading === this.#reading && this.machine.phase === "reading") {
        const { final, ms } = (thrown ?? {}) as Unread;
        this.#error = this.fail("snapshot", "no snapshot", thrown, final);
        this.machine.unread(n, ms);
      }
    }
    env.clearTimeout(timer);
    this.publish();
  }

  #apply(state: S, event: EventFrame): S {
    try {
      const next: any = this.#options.apply(state, event);
      if (next === undefined || typeof next?.then === "function") throw new TypeError("it must return the new state");
      return next;
    } catch (thrown) {
      this.fail("apply", `apply failed at ${event.epoch}:${event.offset} (${event.type})`, thrown);
      throw thrown;
    }
  }

  #passed(event: EventFrame, held: boolean): void {
    this.#filter((layer) => layer.passed(event));
    if (!event.skip && !held) this.#call("onevent", () => this.#options.onevent?.(event, this.machine.held!.state));
  }

  #layered(state: S): S {
    for (const layer of this.#layers) {
      let done = false;
      this.#call("an optimistic change", () => {
        state = layer.change(state);
        done = true;
      });
      if (!done) this.#filter((other) => other === layer);
    }
    return state;
  }

  #call(what: string, f: () => void): void {
    guard(what, this.#host.report, this.name, f);
  }

  #filter(done: (layer: Layer<S>) => boolean): void {
    if (this.#layers.length > 0) this.#layers = this.#layers.filter((layer) => !done(layer));
  }

  get #storeKey(): string {
    return `${this.name} ${this.key}`;
  }
}
