// A feed: one connection, shared by all topics of a page.

import { here, type Env, type SocketConstructor } from "./env.js";
import { CommitcastError, guard } from "./errors.js";
import { Link, type Connection, type Token } from "./socket.js";
import { Subject, type Layer, type TopicOptions, type View } from "./topic.js";
import { epochOf, isTopic, lines, parse, request, type Frame } from "./wire.js";

export interface FeedOptions {
  /** Of `/v1/ws`: `ws:`, `wss:`, `http:`, `https:`, or relative to the page. */
  url: string | URL;
  /** Sent first. A function is called before each connection, and may be slow, or throw. */
  token?: Token;
  /** Receives every error. Default: `console.error`. */
  onerror?: (error: CommitcastError) => void;
  /** Called when `feed.connection` has changed. */
  onconnection?: (connection: Connection) => void;
  /** Default: that of the platform. Node has one from version 22 on; before, give that of package `ws`. */
  WebSocket?: SocketConstructor | (new (...a: any[]) => any);
  /** Reads snapshots given as URL. Default: that of the platform. */
  fetch?: typeof globalThis.fetch;
  /** Clock and events: for tests. */
  env?: Env;
}

/** Connects, as soon as there is a topic. */
export function connect(options: FeedOptions): Feed {
  return new Feed(options);
}

export class Feed {
  readonly #options: FeedOptions;
  readonly #env: Env;
  readonly #link: Link;
  readonly #subjects = new Map<string, Subject<any>>();
  readonly #left = new Set<string>(); // topics given up in this connection: what still comes of them is no surprise
  readonly #said = new Set<string>(); // kinds of bad frames that were reported in this connection
  readonly #requests = new Map<number, Subject<any>>();
  #id = 0;
  #failed: CommitcastError | undefined;

  constructor(options: FeedOptions) {
    this.#options = options;
    this.#env = options.env ?? here;
    const WebSocket = options.WebSocket ?? (globalThis as any).WebSocket;
    if (!WebSocket) throw new TypeError("no WebSocket: give one");
    const url = new URL(options.url, (globalThis as any).location?.href);
    url.protocol = url.protocol.replace(/^http/, "ws");
    this.#link = new Link({
      url: url.href,
      token: options.token,
      WebSocket,
      env: this.#env,
      up: () => {
        this.#left.clear();
        this.#said.clear();
        this.#each((s) => s.machine.up());
      },
      down: () => {
        this.#requests.clear();
        this.#each((s) => s.machine.down());
      },
      message: (text) => this.#message(text),
      probe: () => [...this.#subjects.values()].some((s) => s.machine.probe() && (s.publish(), true)),
      changed: () => {
        const { state } = this.#link.connection;
        if (state !== "failed") this.#failed = undefined;
        guard("onconnection", (e) => this.report(e), undefined, () => options.onconnection?.(this.connection));
        this.#each(() => {});
      },
      report: (error) => {
        if (error.final) this.#failed = error;
        this.report(error);
      },
    });
  }

  /** How the connection is. Replaced, never changed. */
  get connection(): Connection {
    return this.#link.connection;
  }

  /** Follows a topic: reads its snapshot, then applies every event after it. */
  topic<S, D = unknown>(name: string, options: TopicOptions<S, D>): Topic<S> {
    if (!isTopic(name)) throw new TypeError(`"${name}" is not a topic`);
    if (this.connection.state === "closed") throw new TypeError("the feed is closed");
    let subject = this.#subjects.get(name) as Subject<S> | undefined;
    if (subject && subject.key !== (options.key ?? "")) {
      throw new TypeError(`${name} is followed with key "${subject.key}"`);
    }
    subject ??= this.#add(name, options);
    return new Topic(subject, () => {
      if (subject.users.size > 0) return;
      this.#subjects.delete(name);
      this.#left.add(name);
      subject.close();
    });
  }

  /** Tries at once whatever waits or has failed: for a button. */
  retry(): void {
    this.#link.retry();
    this.#each((s) => s.machine.retry());
  }

  /** Ends it: connection, topics, timers. */
  close(): void {
    for (const s of this.#subjects.values()) for (const user of s.users) user.close();
    this.#link.close();
  }

  /** Hands an error to `onerror`. Never throws. */
  report(error: CommitcastError): void {
    try {
      (this.#options.onerror ?? console.error)(error);
    } catch (thrown) {
      console.error(thrown);
    }
  }

  // ------------------------------------------------------------------------------------------------------------

  #add<S, D>(name: string, options: TopicOptions<S, D>): Subject<S> {
    const feed = this;
    const subject: Subject<S> = new Subject<S>(name, options, {
      env: this.#env,
      fetch: this.#options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
      get trouble() {
        return { failed: feed.#failed, lost: feed.#link.lost };
      },
      request: (op, ...more) => {
        const id = ++this.#id;
        this.#requests.set(id, subject);
        this.#link.send(request(op, id, ...more));
        return id;
      },
      report: (error) => this.report(error),
    });
    this.#subjects.set(name, subject);
    if (this.connection.state === "open") subject.machine.up();
    void subject.start();
    this.#link.start();
    return subject;
  }

  #message(text: unknown): void {
    const touched = new Set<Subject<any>>();
    for (const line of typeof text === "string" ? lines(text) : [""]) {
      let f: Frame | undefined;
      try {
        f = parse(line);
      } catch (thrown) {
        this.#once("garbage", "not a frame", thrown);
      }
      if (f) this.#frame(f, touched);
    }
    for (const s of touched) s.publish();
  }

  #frame(f: Frame, touched: Set<Subject<any>>): void {
    switch (f.op) {
      case "hello":
        return this.#link.hello(f);
      case "reconnect":
        return this.#link.hint(f.in_ms);
      case "heartbeat":
        for (const [name, s] of this.#subjects) {
          s.machine.heartbeat(epochOf(f, name), f.heads[name]);
          touched.add(s);
        }
        return;
      case "error": {
        const s = this.#requests.get(f.id);
        this.#requests.delete(f.id);
        if (!s) return this.#once("refused", `refused: ${f.code}: ${f.message}`);
        s.refused(f.id, f.code, f.message);
        touched.add(s);
        return;
      }
    }
    const s = this.#subjects.get(f.topic);
    if (!s) {
      if (!this.#left.has(f.topic)) this.#once("topic", `${f.op} of ${f.topic}, which nobody asked for`);
      return;
    }
    touched.add(s);
    if (f.op === "event") s.machine.event(f);
    else if (f.op === "reset") s.machine.reset(f.in_ms);
    else {
      this.#requests.delete(f.id);
      if (f.op === "subscribed") s.machine.subscribed(f.id, f.epoch, f.head);
      else s.machine.unsubscribed(f.id);
    }
  }

  /** Reports the first of its kind in a connection: a server that sends nonsense sends much of it. */
  #once(kind: "garbage" | "topic" | "refused", message: string, cause?: unknown): void {
    if (this.#said.has(kind)) return;
    this.#said.add(kind);
    this.report(new CommitcastError(kind, message, { cause }));
  }

  #each(f: (s: Subject<any>) => void): void {
    for (const s of [...this.#subjects.values()]) {
      f(s);
      s.publish();
    }
  }
}

/** A topic that is followed. Its state is always that of one moment of the database, and it says of which. */
export class Topic<S> implements AsyncIterable<View<S>> {
  readonly #subject: Subject<S>;
  readonly #release: () => void;
  readonly #ends = new Set<() => void>(); // of listeners and iterators of this handle
  #closed = false;

  /** Made by `feed.topic`. */
  constructor(subject: Subject<S>, release: () => void) {
    this.#subject = subject;
    this.#release = release;
    subject.users.add(this);
  }

  get name(): string {
    return this.#subject.name;
  }

  /** What to show now. Replaced, never changed. */
  get view(): View<S> {
    return this.#subject.view;
  }

  /** Calls `listener` after each change, at most once a message. Returns how to stop. */
  readonly subscribe = (listener: (view: View<S>) => void): (() => void) => {
    if (this.#closed) return () => {};
    const stop = this.#subject.listen(listener);
    this.#ends.add(stop);
    return () => {
      this.#ends.delete(stop);
      stop();
    };
  };

  /** Yields the view, then the newest after each change: a slow reader misses views, never the last. */
  async *[Symbol.asyncIterator](): AsyncGenerator<View<S>, void, undefined> {
    let shown: View<S> | undefined;
    let wake: (() => void) | undefined;
    const call = () => wake?.();
    const stop = this.subscribe(call);
    this.#ends.add(call);
    try {
      while (!this.#closed) {
        if (shown === this.view) await new Promise<void>((resolve) => (wake = resolve));
        else yield (shown = this.view);
      }
    } finally {
      this.#ends.delete(call);
      stop();
    }
  }

  /** Reads the snapshot again. `why` is reported: the state was found wrong. */
  reread(why?: string): void {
    if (why) this.#subject.fail("diverged", why);
    this.#subject.machine.reread();
    this.#subject.publish();
  }

  /** Shows a change on top of the state; returns how to take it away. `act` does this. */
  layer(layer: Layer<S>): () => void {
    return this.#subject.layer(layer);
  }

  /** Stops following, unless somebody else does. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const end of this.#ends) end();
    this.#subject.users.delete(this);
    this.#release();
  }
}
