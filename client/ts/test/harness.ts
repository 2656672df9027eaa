// What the tests share: a clock that stands still, and a real server that does as it is told.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { createServer, type IncomingMessage, type Server as HTTPServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after } from "node:test";
import { WebSocket, WebSocketServer } from "ws";
import { connect, type CommitcastError, type Env, type Feed, type FeedOptions, type Topic, type View } from "../src/index.js";

(globalThis as any).crypto ??= webcrypto; // Node before 20 has it, and does not show it

export const E = "3-7d0a";

/** How long a test waits for what must come, on a machine that is busy with other tests. */
const PATIENCE = 60_000;

/** Fails, instead of waiting for ever. */
export function within<T>(what: string, promise: Promise<T>, ms = PATIENCE): Promise<T> {
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Resolves when a condition holds; it is looked at again after each turn of the event loop. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + PATIENCE;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A clock that moves when it is told to, and events that happen when they are told to. */
export class Clock implements Env {
  time = 1_000_000;
  chance = 0.5;
  isHidden = false;
  readonly #timers = new Map<number, { at: number; f: () => void }>();
  readonly #listeners = new Set<(e: { type: string }) => void>();
  #id = 0;

  now = (): number => this.time;
  random = (): number => this.chance;
  setTimeout = (f: () => void, ms: number): number => {
    this.#timers.set(++this.#id, { at: this.time + ms, f });
    return this.#id;
  };
  clearTimeout = (id: number): void => void this.#timers.delete(id);
  listen = (f: (e: { type: string }) => void): (() => void) => {
    this.#listeners.add(f);
    return () => void this.#listeners.delete(f);
  };
  hidden = (): boolean => this.isHidden;

  /** Lets time pass; timers fire in order. */
  advance(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      let next: [number, { at: number; f: () => void }] | undefined;
      for (const t of this.#timers) if (t[1].at <= end && (!next || t[1].at < next[1].at)) next = t;
      if (!next) break;
      this.#timers.delete(next[0]);
      this.time = Math.max(this.time, next[1].at);
      next[1].f();
    }
    this.time = end;
  }
  /** The machine slept: time has passed, and no timer has fired in it. */
  sleep(ms: number): void {
    this.time += ms;
  }
  /** Somebody set the clock: no time has passed. */
  set(ms: number): void {
    this.time += ms;
    for (const t of this.#timers.values()) t.at += ms;
  }
  happen(type: string): void {
    for (const f of [...this.#listeners]) f({ type });
  }
  get timers(): number {
    return this.#timers.size;
  }
  get listeners(): number {
    return this.#listeners.size;
  }
}

type Handler = (request: IncomingMessage, response: ServerResponse, body: string) => void;

/** A connection, as the server sees it. */
export class Peer {
  readonly closed: Promise<{ code: number; reason: string }>;
  readonly #ws: WebSocket;
  readonly #frames: any[] = [];
  #wake: (() => void) | undefined;
  isClosed = false;

  constructor(ws: WebSocket) {
    this.#ws = ws;
    ws.on("message", (data, binary) => {
      assert.equal(binary, false);
      for (const line of String(data).split("\n")) this.#frames.push(JSON.parse(line));
      this.#wake?.();
    });
    this.closed = new Promise((resolve) =>
      ws.on("close", (code, reason) => {
        this.isClosed = true;
        resolve({ code, reason: String(reason) });
        this.#wake?.();
      }));
  }

  /** The next frame of the client. */
  async next(op?: string): Promise<any> {
    const frame = await within(`a frame ${op ?? ""} from the client`, this.#take());
    if (op) assert.equal(frame.op, op, JSON.stringify(frame));
    return frame;
  }
  async #take(): Promise<any> {
    while (this.#frames.length === 0) {
      if (this.isClosed) throw new Error("the client closed the connection");
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    return this.#frames.shift();
  }
  get waiting(): number {
    return this.#frames.length;
  }

  /** Sends frames as one message. */
  send(...frames: object[]): void {
    this.text(frames.map((f) => JSON.stringify(f)).join("\n"));
  }
  text(message: string | Buffer): void {
    this.#ws.send(message);
  }
  close(code = 1012, reason = ""): void {
    this.#ws.close(code, reason);
  }
  /** Ends it as a network does: without a word. */
  cut(): void {
    this.#ws.terminate();
  }
  hello(epoch = E, heartbeat_ms = 15_000): void {
    this.send({ op: "hello", protocol: "commitcast.v1", node: "b1", session: "s", epoch, heartbeat_ms });
  }
  /** Answers a subscribe. Returns it. */
  async subscribed(topic: string, head?: number, epoch = E): Promise<any> {
    const f = await this.next("subscribe");
    assert.equal(f.topic, topic);
    const at = Number(f.after?.split(":")[1] ?? head ?? 0);
    this.send({ op: "subscribed", id: f.id, topic, epoch, after: at, head: head ?? at });
    return f;
  }
  async unsubscribed(): Promise<any> {
    const f = await this.next("unsubscribe");
    this.send({ op: "unsubscribed", id: f.id, topic: f.topic });
    return f;
  }
}

export const event = (topic: string, offset: number, data: unknown, more: object = {}): object => ({
  op: "event", topic, epoch: E, offset, id: 1000 + offset, type: "x", at: "2026-01-02T03:04:05.000006Z", data, ...more,
});

export class Server {
  readonly url: string;
  readonly http: string;
  readonly handlers = new Map<string, Handler>();
  connections = 0;
  readonly #peers: Peer[] = [];
  #wake: (() => void) | undefined;

  static async start(): Promise<Server> {
    const http = createServer();
    await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
    return new Server(http);
  }
  private constructor(http: HTTPServer) {
    const { port } = http.address() as AddressInfo;
    this.url = `ws://127.0.0.1:${port}/v1/ws`;
    this.http = `http://127.0.0.1:${port}`;
    const ws = new WebSocketServer({ server: http, handleProtocols: (offered) => (offered.has("commitcast.v1") ? "commitcast.v1" : false) });
    ws.on("connection", (socket) => {
      this.connections++;
      this.#peers.push(new Peer(socket));
      this.#wake?.();
    });
    http.on("request", (request, response) => {
      let body = "";
      request.on("data", (chunk) => (body += chunk));
      request.on("end", () => {
        const handler = this.handlers.get(request.url!.split("?")[0]);
        if (handler) handler(request, response, body);
        else response.writeHead(404).end();
      });
    });
    after(() => {
      for (const s of ws.clients) s.terminate();
      http.closeAllConnections();
      http.close();
    });
  }

  /** The next connection. */
  async accept(): Promise<Peer> {
    const take = async (): Promise<Peer> => {
      while (this.#peers.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
      return this.#peers.shift()!;
    };
    return within("a connection", take());
  }
}

export interface Bench {
  server: Server;
  clock: Clock;
  feed: Feed;
  errors: CommitcastError[];
  token: boolean;
}

const feeds: Feed[] = [];
after(() => feeds.forEach((f) => f.close()));

/** A feed and its server. */
export async function bench(options: Partial<FeedOptions> = {}, server?: Server): Promise<Bench> {
  server ??= await Server.start();
  const clock = (options.env as Clock | undefined) ?? new Clock();
  const errors: CommitcastError[] = [];
  const feed = connect({ url: server.url, WebSocket, env: clock, onerror: (e) => errors.push(e), ...options });
  feeds.push(feed);
  return { server, clock, feed, errors, token: options.token !== undefined };
}

/** Resolves when a topic shows what is wanted. */
export function shown<S>(topic: Topic<S>, what: string, wanted: (view: View<S>) => boolean): Promise<View<S>> {
  if (wanted(topic.view)) return Promise.resolve(topic.view);
  let stop: () => void;
  const seen = new Promise<View<S>>((resolve) => {
    stop = topic.subscribe((view) => {
      if (wanted(view)) resolve(view);
    });
  });
  return within(`${what} (${topic.view.status}, ${topic.view.cursor})`, seen).finally(() => stop());
}

export const list = {
  snapshot: async () => ({ state: [] as unknown[], cursor: `${E}:0`, pending: [], epoch: E }),
  apply: (state: unknown[], e: { data: unknown }): unknown[] => [...state, e.data],
};

/** A topic that is live. */
export async function live(b: Bench, name = "t"): Promise<{ topic: Topic<unknown[]>; peer: Peer }> {
  const topic = b.feed.topic(name, list);
  const peer = await b.server.accept();
  peer.hello();
  if (b.token) await peer.next("auth");
  await peer.subscribed(name);
  await shown(topic, "live", (v) => v.status === "live");
  return { topic, peer };
}

// Nothing may be left unhandled, in any test.
process.on("unhandledRejection", (reason) => {
  throw reason;
});
