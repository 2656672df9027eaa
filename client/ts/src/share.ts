// One connection for all tabs. One tab, which holds a Web Lock, has the real connection (hub.ts); each feed talks to it
// through a socket that looks like its own. When that tab goes, another takes over, and the feeds reconnect to it.

import { here, type Env, type Socket, type SocketConstructor } from "./env.js";
import { Hub, type Out } from "./hub.js";

/** As much of `navigator.locks` as is used. */
export interface Locks {
  request(name: string, options: { steal?: boolean }, held: () => Promise<unknown>): Promise<unknown>;
  query(): Promise<{ held?: { name?: string }[] }>;
}

export interface ShareOptions {
  /** Tabs with the same name and URL share. Name the user in it: they share the first one's token. */
  name: string;
  /** For the real connection. Default: that of the platform. */
  WebSocket?: SocketConstructor | (new (...a: any[]) => any);
  /** Default: `navigator.locks`. */
  locks?: Locks;
  env?: Env;
}

/** What goes over the channel: to the hub, from it to sockets, and word of a new hub. */
type Message =
  | { to: "hub"; op: "open" | "close"; from: string }
  | { to: "hub"; op: "send"; from: string; text: string }
  | { to: "sockets"; hub: string; out: Out[] }
  | { to: "all"; hub: string };

/** How long the hub may take to open, before it is taken for dead, and its lock is taken. */
const OPEN_WITHIN = 3_000;
const GONE = 1001;

const random = (): string => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16)).join("");

/**
 * A WebSocket constructor for `connect({url, WebSocket: share({name})})`. Where the platform has no locks or channels
 * it is the platform's own: each tab then has its own connection.
 */
export function share(options: ShareOptions): SocketConstructor {
  const WebSocket = (options.WebSocket ?? (globalThis as any).WebSocket) as SocketConstructor;
  const locks: Locks = options.locks ?? (globalThis as any).navigator?.locks;
  if (!locks || !(globalThis as any).BroadcastChannel) return WebSocket;
  const tabs = new Map<string, Tab>();
  return class {
    constructor(url: string, protocol: string) {
      const key = `commitcast ${options.name} ${url}`;
      let tab = tabs.get(key);
      if (!tab || tab.closed) {
        tab = new Tab(key, () => new WebSocket(url, protocol), locks, options.env ?? here);
        tabs.set(key, tab);
      }
      return tab.open();
    }
  } as unknown as SocketConstructor;
}

/** This page's end of the channel. */
class Tab {
  closed = false;
  readonly #id = random();
  readonly #key: string;
  readonly #dial: () => Socket;
  readonly #locks: Locks;
  readonly #env: Env;
  readonly #channel: BroadcastChannel;
  readonly #sockets = new Map<string, Shared>();
  readonly #done: Promise<void>;
  #finish!: () => void;
  #hub: Hub | undefined; // if it is here
  #release: (() => void) | undefined;
  #count = 0;
  readonly #deaf: () => void;

  constructor(key: string, dial: () => Socket, locks: Locks, env: Env) {
    this.#key = key;
    this.#dial = dial;
    this.#locks = locks;
    this.#env = env;
    this.#done = new Promise((resolve) => (this.#finish = resolve));
    this.#channel = new BroadcastChannel(key);
    this.#channel.onmessage = (e: MessageEvent) => this.#receive(e.data as Message);
    // As long as this lock is held, the hub knows that the tab lives.
    void locks.request(`${key} ${this.#id}`, {}, () => this.#done).catch(() => {});
    this.#lead(false);
    this.#deaf = env.listen((e) => {
      if (e.type === "pagehide") this.close();
    });
  }

  open(): Socket {
    const id = `${this.#id}/${++this.#count}`;
    const socket = new Shared(
      (m) => this.#post({ to: "hub", from: id, ...m } as Message),
      () => {
        this.#sockets.delete(id);
        if (this.#sockets.size === 0) this.close();
      },
    );
    this.#sockets.set(id, socket);
    this.#post({ to: "hub", op: "open", from: id });
    const timer = this.#env.setTimeout(() => {
      if (socket.hub === undefined && this.#sockets.get(id) === socket) this.#lead(true);
    }, OPEN_WITHIN);
    socket.opened = () => this.#env.clearTimeout(timer);
    return socket;
  }

  /** Leaves: the hub, if it is here, passes to another tab. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.#deaf();
    this.#stop();
    this.#finish();
    for (const s of [...this.#sockets.values()]) s.end(GONE, "the page is hidden");
    this.#channel.close();
  }

  #post(m: Message): void {
    if (this.closed && m.to !== "hub") return;
    try {
      this.#channel.postMessage(m); // reaches the other tabs,
    } catch {} // unless it is closed
    queueMicrotask(() => this.#receive(m)); // and this one
  }

  #receive(m: Message): void {
    if (m.to === "hub") this.#hub?.receive(m.from, m.op, m.op === "send" ? m.text : "");
    else if (m.to === "sockets") {
      for (const [id, socket] of [...this.#sockets]) socket.take(id, m.hub, m.out);
    } else {
      for (const [id, socket] of [...this.#sockets]) {
        if (socket.hub === undefined) this.#post({ to: "hub", op: "open", from: id });
        else if (socket.hub !== m.hub) socket.end(GONE, "another tab has the connection");
      }
    }
  }

  /** Waits to be the one with the connection; or takes that over from a tab that does not answer. */
  #lead(steal: boolean): void {
    const held = (): Promise<void> => {
      if (this.closed) return Promise.resolve();
      return new Promise((resolve) => {
        this.#release = resolve;
        const id = random();
        this.#hub = new Hub(this.#dial, this.#env, (out) => this.#post({ to: "sockets", hub: id, out }), () => this.#living());
        this.#post({ to: "all", hub: id });
      });
    };
    this.#locks.request(this.#key, steal ? { steal } : {}, held).catch(() => {
      this.#stop(); // it was taken over
      if (!this.closed) this.#lead(false);
    });
  }

  #stop(): void {
    this.#hub?.close();
    this.#hub = undefined;
    this.#release?.();
  }

  /** The ids of tabs that live. */
  async #living(): Promise<(socket: string) => boolean> {
    const { held = [] } = await this.#locks.query();
    const names = new Set(held.map((lock) => lock.name));
    return (socket) => names.has(`${this.#key} ${socket.split("/")[0]}`);
  }
}

type Say = (m: { op: "send"; text: string } | { op: "close" }) => void;

/** A socket of a feed, whose other end is the hub. */
class Shared implements Socket {
  onopen: Socket["onopen"] = null;
  onmessage: Socket["onmessage"] = null;
  onclose: Socket["onclose"] = null;
  onerror: Socket["onerror"] = null;
  hub: string | undefined; // that has opened it
  opened: (() => void) | undefined;
  readonly #post: Say;
  readonly #gone: () => void;
  readonly #topics = new Set<string>(); // whose events are for this socket
  #ended = false;

  constructor(post: Say, gone: () => void) {
    this.#post = post;
    this.#gone = gone;
  }

  send(text: string): void {
    if (!this.#ended) this.#post({ op: "send", text });
  }

  close(): void {
    if (this.#ended) return;
    this.#post({ op: "close" });
    this.#ended = true;
    this.opened?.();
    this.#gone();
  }

  end(code: number, reason: string): void {
    if (this.#ended) return;
    this.close();
    this.onclose?.({ code, reason });
  }

  /** Takes what is for this socket. */
  take(id: string, hub: string, out: readonly Out[]): void {
    const lines: string[] = [];
    for (const o of out) {
      if (this.#ended || (o.socket !== undefined && o.socket !== id)) continue;
      if (o.op === "open") {
        if (this.hub !== undefined) continue;
        this.hub = hub;
        this.opened?.();
        this.onopen?.({});
      } else if (this.hub !== hub) continue;
      else if (o.op === "close") return this.end(o.code, o.reason);
      else {
        if (o.socket !== undefined && o.join !== undefined) {
          if (o.join) this.#topics.add(o.topic!);
          else this.#topics.delete(o.topic!);
        }
        if (o.socket !== undefined || o.topic === undefined || this.#topics.has(o.topic)) lines.push(o.line);
      }
    }
    if (lines.length > 0 && !this.#ended) this.onmessage?.({ data: lines.join("\n") });
  }
}
