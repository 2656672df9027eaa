// The connection: made, watched, and made again. It knows hello, reconnect and the close codes, and nothing of topics.

import { jitter, type Env, type Socket, type SocketConstructor } from "./env.js";
import { CommitcastError, type ErrorKind } from "./errors.js";
import { auth, PROTOCOL, type Hello } from "./wire.js";

/** A token, or how to get one. Called before each connection; `refused` is true if the server refused the last one. */
export type Token = string | ((refused: boolean) => string | Promise<string>);

/** Where the connection is. `waiting` is between two attempts; `failed` is until `retry()`. */
export interface Connection {
  readonly state: "idle" | "connecting" | "open" | "waiting" | "failed" | "closed";
  /** While waiting: when the next attempt begins, in milliseconds since 1970. */
  readonly retryAt?: number;
  /** Why there is none, for people. */
  readonly reason?: string;
}

export interface LinkConfig {
  readonly url: string;
  readonly token: Token | undefined;
  readonly WebSocket: SocketConstructor;
  readonly env: Env;
  /** Hello was received: requests may be sent. */
  up(hello: Hello): void;
  /** The connection ended. */
  down(): void;
  /** A message came. The link hears of hello and reconnect by `hello()` and `hint()`. */
  message(text: string): void;
  /** Ask the server anything that it answers. False if there is nothing to ask. */
  probe(): boolean;
  /** `connection` has changed. */
  changed(): void;
  report(error: CommitcastError): void;
}

/** First and longest pause before another attempt. */
const RETRY_BASE = 500;
const RETRY_CAP = 30_000;
/** A connection that stood this long was a good one: the next failure counts as the first. */
const STABLE = 5_000;
/** How long token, handshake and hello may take together. */
const HELLO_WITHIN = 10_000;
/** How long the answer to a probe may take. */
const PROBE_WITHIN = 5_000;
/** How often silence is looked for. A look that comes late means that this machine, or this tab, slept. */
const WATCH = 5_000;
/** After `online`, a whole office comes back: spread over this time. */
const ONLINE_SPREAD = 1_000;
/** The longest time that a server may ask to stay away. */
const HINT_CAP = 300_000;

const UNAUTHORIZED = 4401;
const OVERLOAD = 1013;
/** Connecting again by itself would end the same way (wire/close.go). */
const FINAL = [1003, 1009, 4429];

export class Link {
  connection: Connection = { state: "idle" };
  /** True from a loss, or a failed attempt, until the next hello. */
  lost = false;

  readonly #config: LinkConfig;
  readonly #env: Env;
  readonly #deaf: () => void;
  #socket: Socket | undefined;
  #timer: unknown; // of the next attempt, of hello, of the watch
  #turn = 0; // of the attempt under way: answers to earlier ones are void
  #attempt = 0;
  #refused: string | undefined; // the token that was refused
  #sent: string | undefined; // the token of this connection
  #silence = 0; // how long is too long: 2 × heartbeat_ms; 0 before hello
  #heard = 0;
  #since = 0; // of hello
  #notBefore = 0; // the server's word
  #probed = 0; // when a probe was sent that nothing has answered

  constructor(config: LinkConfig) {
    this.#config = config;
    this.#env = config.env;
    this.#deaf = this.#env.listen((e) => this.#changed(e.type));
  }

  /** Connects, unless it has. */
  start(): void {
    if (this.connection.state === "idle") void this.#connect();
  }

  /** Connects at once, also after a failure that ends attempts. */
  retry(): void {
    const { state } = this.connection;
    if (state === "failed" || state === "waiting") {
      this.#refused = undefined;
      void this.#connect();
    }
  }

  close(): void {
    this.#deaf();
    this.#drop(1000);
    this.#set({ state: "closed" });
  }

  send(text: string): void {
    this.#socket?.send(text);
  }

  /** Hello was among the frames of a message. */
  hello(f: Hello): void {
    if (this.#silence > 0) return;
    if (f.protocol !== undefined && f.protocol !== PROTOCOL) {
      return this.#fail("connection", `the server speaks ${f.protocol}, not ${PROTOCOL}`);
    }
    this.#silence = 2 * Math.max(f.heartbeat_ms, 500);
    this.#notBefore = 0; // it has been obeyed
    this.#since = this.#env.now();
    this.lost = false;
    this.#set({ state: "open" });
    this.#watch();
    this.#config.up(f);
  }

  /** The server is about to close, and says when to come back. */
  hint(ms: number): void {
    this.#notBefore = this.#env.now() + Math.min(ms, HINT_CAP);
  }

  // ------------------------------------------------------------------------------------------------------------

  async #connect(): Promise<void> {
    this.#drop();
    const { url, token: source } = this.#config;
    const turn = this.#turn;
    this.#set({ state: "connecting" });
    this.#later(HELLO_WITHIN, () => this.#over("the server did not say hello"));
    let socket: Socket;
    try {
      const token = typeof source === "function" ? await source(this.#refused !== undefined) : source;
      if (turn !== this.#turn) return;
      if (token !== undefined && token === this.#refused) {
        return this.#fail("token", "the server refused the token, and there is no other");
      }
      this.#sent = token;
    } catch (thrown) {
      if (turn !== this.#turn) return;
      this.#config.report(new CommitcastError("token", "no token", { cause: thrown }));
      return this.#over("no token");
    }
    try {
      socket = new this.#config.WebSocket(url, PROTOCOL);
    } catch (thrown) {
      return this.#fail("connection", `cannot connect to ${url}`, thrown);
    }
    this.#socket = socket;
    socket.onopen = () => {
      if (this.#sent !== undefined) socket.send(auth(this.#sent));
    };
    socket.onmessage = (e) => {
      this.#heard = this.#env.now();
      this.#probed = 0;
      this.#config.message(e.data);
    };
    socket.onerror = () => {}; // close follows, and says as much
    socket.onclose = (e) => this.#ended(e.code, e.reason);
  }

  #ended(code: number, why: string): void {
    why ||= `closed with ${code}`;
    if (FINAL.includes(code)) return this.#fail("connection", `the server closed the connection: ${why} (${code})`);
    if (code === UNAUTHORIZED) {
      this.#refused = this.#sent;
      if (typeof this.#config.token !== "function") return this.#fail("token", "the server refused the token");
    } else if (this.#silence > 0) this.#refused = undefined;
    if (code === OVERLOAD) this.#attempt = Math.max(this.#attempt, 4);
    this.#over(why);
  }

  /** This attempt, or this connection, is over: there will be another. */
  #over(why: string): void {
    const now = this.#env.now();
    if (this.#silence > 0 && now - this.#since > STABLE) this.#attempt = 0;
    const told = Math.min(this.#notBefore - now, HINT_CAP); // of another clock, if that was set back since
    this.#drop();
    this.lost = true;
    this.#wait(told > 0 ? told : jitter(this.#env, RETRY_BASE, this.#attempt++, RETRY_CAP), why);
    this.#config.down();
  }

  #wait(ms: number, why?: string): void {
    this.#later(ms, () => void this.#connect());
    this.#set({ state: "waiting", retryAt: this.#env.now() + ms, ...(why && { reason: why }) });
  }

  #fail(kind: ErrorKind, why: string, cause?: unknown): void {
    this.#drop(1000);
    this.lost = true;
    this.#set({ state: "failed", reason: why });
    this.#config.report(new CommitcastError(kind, why, { final: true, cause }));
    this.#config.down();
  }

  /** Forgets the socket, and everything that is still to come of it. */
  #drop(code?: number): void {
    this.#turn++;
    this.#env.clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = undefined;
    this.#silence = this.#probed = 0;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(code);
    } catch {} // it was not open
  }

  #later(ms: number, f: () => void): void {
    this.#env.clearTimeout(this.#timer);
    this.#timer = this.#env.setTimeout(f, ms);
  }

  #watch(): void {
    const now = this.#env.now();
    const every = Math.min(WATCH, this.#silence / 2);
    this.#later(every, () => {
      const then = this.#env.now();
      this.#heard = Math.min(this.#heard, then); // a clock that was set back must not hide a silence
      const silent = then - this.#heard;
      if (silent >= this.#silence || (this.#probed && then - this.#probed >= PROBE_WITHIN)) {
        return this.#over("the server fell silent");
      }
      if (then - now - every > WATCH && silent > this.#silence / 2) this.#probe();
      this.#watch();
    });
  }

  #probe(): void {
    if (this.#probed || this.#silence === 0) return;
    if (this.#config.probe()) this.#probed = this.#env.now();
  }

  /** The network has changed, and whatever stands is in doubt; or the page is looked at again. Nobody waits longer. */
  #changed(type: string): void {
    if (this.#env.hidden()) return;
    const { state, retryAt, reason } = this.connection;
    const now = this.#env.now();
    if (type.endsWith("line") || now - this.#heard > this.#silence / 2) this.#probe();
    if (state === "waiting" && this.#notBefore <= now && retryAt! > now + ONLINE_SPREAD) {
      this.#wait(this.#env.random() * ONLINE_SPREAD, reason);
    }
  }

  #set(connection: Connection): void {
    this.connection = connection;
    this.#config.changed();
  }
}
