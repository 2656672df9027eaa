// Commitcast's client for browsers, from client/ts/src by `npm run build`. Apache-2.0. Protocol commitcast.v1.
//   import { connect, act, digest } from "./commitcast.js";

// src/env.ts
var { document, addEventListener } = globalThis;
var here = {
  now: Date.now,
  random: Math.random,
  setTimeout: (f, ms) => setTimeout(f, ms),
  clearTimeout: (timer) => clearTimeout(timer),
  listen: (f) => {
    const stop = new AbortController();
    for (const type of ["online", "offline", "pageshow"]) addEventListener?.(type, f, stop);
    document?.addEventListener("visibilitychange", f, stop);
    return () => stop.abort();
  },
  hidden: () => document?.visibilityState === "hidden"
};
var jitter = (env, base, attempt, cap) => env.random() * Math.min(cap, base * 2 ** Math.min(attempt, 30));

// src/errors.ts
var CommitcastError = class extends Error {
  name = "CommitcastError";
  kind;
  /** The topic that it is about, if it is about one. */
  topic;
  /** True if trying again will not help until something changes: the status is `failed`. */
  final;
  /** `cause` is what was thrown; its message becomes part of this one. */
  constructor(kind, message, more = {}) {
    const { topic, cause } = more;
    super((topic ? topic + ": " : "") + message + (cause ? ": " + reason(cause) : ""), { cause });
    this.kind = kind;
    this.topic = topic;
    this.final = more.final ?? false;
  }
};
var reason = (thrown) => thrown instanceof Error ? thrown.message : String(thrown);
function guard(what, report, topic, f) {
  try {
    f();
  } catch (cause) {
    report(new CommitcastError("callback", `${what} threw`, { topic, cause }));
  }
}

// src/wire.ts
var PROTOCOL = "commitcast.v1";
var EPOCH = /^[1-9]\d{0,9}-[0-9a-f]{4,16}$/;
var TOPIC = /^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/;
var isInteger = (v) => Number.isSafeInteger(v) && v >= 0;
var isText = (v) => typeof v === "string";
var isMap = (of) => (v) => v instanceof Object && !Array.isArray(v) && Object.values(v).every(of);
var isEpoch = (v) => isText(v) && EPOCH.test(v);
var isTopic = (v) => isText(v) && TOPIC.test(v);
var FIELDS = {
  hello: "epoch heartbeat_ms",
  subscribed: "id topic epoch after head",
  event: "topic epoch offset id conflated type at data",
  unsubscribed: "id topic",
  reset: "topic epoch head reason in_ms",
  heartbeat: "epoch heads epochs",
  error: "id code message",
  reconnect: "in_ms"
};
var SKIP = 5;
var IS = {
  topic: isTopic,
  epoch: isEpoch,
  heads: isMap(isInteger),
  data: (v) => v !== void 0,
  conflated: (v) => isInteger(v ?? 0),
  epochs: (v) => isMap(isEpoch)(v ?? {}),
  type: isText,
  at: isText,
  reason: isText,
  code: isText,
  message: isText
};
function lines(message) {
  return message.split("\n").filter((line) => line.trim() !== "");
}
function parse(line) {
  const f = JSON.parse(line);
  if (!isText(f?.op) || f.op === "") throw new SyntaxError("no op");
  const fields = Object.hasOwn(FIELDS, f.op) && FIELDS[f.op];
  if (!fields) return;
  for (const field of fields.split(" ").slice(0, f.skip === true ? SKIP : 9)) {
    if (!(IS[field] ?? isInteger)(f[field])) throw new SyntaxError(`bad ${field} of ${f.op}`);
  }
  return f;
}
function epochOf(f, topic) {
  const epoch = f.epochs?.[topic];
  return isText(epoch) ? epoch : f.epoch;
}
function parseCursor(text) {
  const [epoch, digits, more] = isText(text) ? text.split(":") : [];
  const offset = Number(digits);
  if (more === void 0 && isEpoch(epoch) && isInteger(offset) && String(offset) === digits) {
    return { epoch, offset };
  }
  return;
}
var formatCursor = (c) => `${c.epoch}:${c.offset}`;
function isForeign(epoch, at) {
  const a = parseInt(epoch);
  const b = parseInt(at);
  return a < b || a === b && epoch !== at;
}
var auth = (token) => JSON.stringify({ op: "auth", token });
var request = (op, id, topic, after, conflate) => JSON.stringify({ op, id, topic, after, conflate });

// src/socket.ts
var RETRY_BASE = 500;
var RETRY_CAP = 3e4;
var STABLE = 5e3;
var HELLO_WITHIN = 1e4;
var PROBE_WITHIN = 5e3;
var WATCH = 5e3;
var ONLINE_SPREAD = 1e3;
var HINT_CAP = 3e5;
var UNAUTHORIZED = 4401;
var OVERLOAD = 1013;
var FINAL = [1003, 1009, 4429];
var Link = class {
  connection = { state: "idle" };
  /** True from a loss, or a failed attempt, until the next hello. */
  lost = false;
  #config;
  #env;
  #deaf;
  #socket;
  #timer;
  // of the next attempt, of hello, of the watch
  #turn = 0;
  // of the attempt under way: answers to earlier ones are void
  #attempt = 0;
  #refused;
  // the token that was refused
  #sent;
  // the token of this connection
  #silence = 0;
  // how long is too long: 2 × heartbeat_ms; 0 before hello
  #heard = 0;
  #since = 0;
  // of hello
  #notBefore = 0;
  // the server's word
  #probed = 0;
  // when a probe was sent that nothing has answered
  constructor(config) {
    this.#config = config;
    this.#env = config.env;
    this.#deaf = this.#env.listen((e) => this.#changed(e.type));
  }
  /** Connects, unless it has. */
  start() {
    if (this.connection.state === "idle") void this.#connect();
  }
  /** Connects at once, also after a failure that ends attempts. */
  retry() {
    const { state } = this.connection;
    if (state === "failed" || state === "waiting") {
      this.#refused = void 0;
      void this.#connect();
    }
  }
  close() {
    this.#deaf();
    this.#drop(1e3);
    this.#set({ state: "closed" });
  }
  send(text) {
    this.#socket?.send(text);
  }
  /** Hello was among the frames of a message. */
  hello(f) {
    if (this.#silence > 0) return;
    if (f.protocol !== void 0 && f.protocol !== PROTOCOL) {
      return this.#fail("connection", `the server speaks ${f.protocol}, not ${PROTOCOL}`);
    }
    this.#silence = 2 * Math.max(f.heartbeat_ms, 500);
    this.#notBefore = 0;
    this.#since = this.#env.now();
    this.lost = false;
    this.#set({ state: "open" });
    this.#watch();
    this.#config.up(f);
  }
  /** The server is about to close, and says when to come back. */
  hint(ms) {
    this.#notBefore = this.#env.now() + Math.min(ms, HINT_CAP);
  }
  // ------------------------------------------------------------------------------------------------------------
  async #connect() {
    this.#drop();
    const { url, token: source } = this.#config;
    const turn = this.#turn;
    this.#set({ state: "connecting" });
    this.#later(HELLO_WITHIN, () => this.#over("the server did not say hello"));
    let socket;
    try {
      const token = typeof source === "function" ? await source(this.#refused !== void 0) : source;
      if (turn !== this.#turn) return;
      if (token !== void 0 && token === this.#refused) {
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
      if (this.#sent !== void 0) socket.send(auth(this.#sent));
    };
    socket.onmessage = (e) => {
      this.#heard = this.#env.now();
      this.#probed = 0;
      this.#config.message(e.data);
    };
    socket.onerror = () => {
    };
    socket.onclose = (e) => this.#ended(e.code, e.reason);
  }
  #ended(code, why) {
    why ||= `closed with ${code}`;
    if (FINAL.includes(code)) return this.#fail("connection", `the server closed the connection: ${why} (${code})`);
    if (code === UNAUTHORIZED) {
      this.#refused = this.#sent;
      if (typeof this.#config.token !== "function") return this.#fail("token", "the server refused the token");
    } else if (this.#silence > 0) this.#refused = void 0;
    if (code === OVERLOAD) this.#attempt = Math.max(this.#attempt, 4);
    this.#over(why);
  }
  /** This attempt, or this connection, is over: there will be another. */
  #over(why) {
    const now = this.#env.now();
    if (this.#silence > 0 && now - this.#since > STABLE) this.#attempt = 0;
    const told = Math.min(this.#notBefore - now, HINT_CAP);
    this.#drop();
    this.lost = true;
    this.#wait(told > 0 ? told : jitter(this.#env, RETRY_BASE, this.#attempt++, RETRY_CAP), why);
    this.#config.down();
  }
  #wait(ms, why) {
    this.#later(ms, () => void this.#connect());
    this.#set({ state: "waiting", retryAt: this.#env.now() + ms, ...why && { reason: why } });
  }
  #fail(kind, why, cause) {
    this.#drop(1e3);
    this.lost = true;
    this.#set({ state: "failed", reason: why });
    this.#config.report(new CommitcastError(kind, why, { final: true, cause }));
    this.#config.down();
  }
  /** Forgets the socket, and everything that is still to come of it. */
  #drop(code) {
    this.#turn++;
    this.#env.clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = void 0;
    this.#silence = this.#probed = 0;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(code);
    } catch {
    }
  }
  #later(ms, f) {
    this.#env.clearTimeout(this.#timer);
    this.#timer = this.#env.setTimeout(f, ms);
  }
  #watch() {
    const now = this.#env.now();
    const every = Math.min(WATCH, this.#silence / 2);
    this.#later(every, () => {
      const then = this.#env.now();
      this.#heard = Math.min(this.#heard, then);
      const silent = then - this.#heard;
      if (silent >= this.#silence || this.#probed && then - this.#probed >= PROBE_WITHIN) {
        return this.#over("the server fell silent");
      }
      if (then - now - every > WATCH && silent > this.#silence / 2) this.#probe();
      this.#watch();
    });
  }
  #probe() {
    if (this.#probed || this.#silence === 0) return;
    if (this.#config.probe()) this.#probed = this.#env.now();
  }
  /** The network has changed, and whatever stands is in doubt; or the page is looked at again. Nobody waits longer. */
  #changed(type) {
    if (this.#env.hidden()) return;
    const { state, retryAt, reason: reason2 } = this.connection;
    const now = this.#env.now();
    if (type.endsWith("line") || now - this.#heard > this.#silence / 2) this.#probe();
    if (state === "waiting" && this.#notBefore <= now && retryAt > now + ONLINE_SPREAD) {
      this.#wait(this.#env.random() * ONLINE_SPREAD, reason2);
    }
  }
  #set(connection) {
    this.connection = connection;
    this.#config.changed();
  }
};

// src/machine.ts
var RESUBSCRIBES = 2;
var Machine = class {
  phase = "idle";
  held;
  /** The newest offset known to exist. */
  head = 0;
  #ports;
  #connected = false;
  #n = 0;
  // of the last read or wait: older answers are void
  #then = "read";
  // what phase waiting waits for
  #asked = 0;
  // id of the subscribe that is not answered
  #leaving = 0;
  // id of the unsubscribe that is not answered: frames before its answer belong to the old subscription
  #stuck = -1;
  // the offset at the last heartbeat whose head was another
  #strikes = 0;
  // healings since the last sign of progress
  #failures = 0;
  // snapshots that could not be read, in a row
  #together = [];
  // have arrived, and are to be applied with what comes next: others before them were left out
  constructor(ports) {
    this.#ports = ports;
  }
  /** Whether everything that is known to exist is in the state. */
  get current() {
    return this.phase === "live" && this.held.cursor.offset >= this.head;
  }
  /** Begins, from a state that was kept, if there is one. */
  start(kept) {
    this.held = kept;
    if (kept) this.#subscribe();
    else this.#read();
  }
  close() {
    this.#leave();
    this.phase = "closed";
    this.#n++;
  }
  // ------------------------------------------------------------------------------------------------ the snapshot
  snapshot(n, held) {
    if (this.phase !== "reading" || n !== this.#n) return;
    this.held = Object.freeze(held);
    this.#failures = 0;
    this.phase = "idle";
    this.#ports.replaced();
    this.#subscribe();
  }
  /** The snapshot could not be read; not to be tried again before `ms`. */
  unread(n, ms = 0) {
    if (this.phase !== "reading" || n !== this.#n) return;
    this.#wait("read", ms, ++this.#failures + 1);
  }
  /** Reads the snapshot again, because somebody found the state wrong. */
  reread() {
    const due = this.phase === "reading" || this.phase === "waiting" && this.#then === "read";
    if (this.phase !== "closed" && !due) this.#again("read");
  }
  /** Tries at once what waits. */
  retry() {
    if (this.phase === "waiting") this.due(this.#n);
    else if (this.phase === "failed") this.#resume();
  }
  // ---------------------------------------------------------------------------------------------- the connection
  up() {
    this.#connected = true;
    if (this.phase === "failed") this.phase = "idle";
    this.#subscribe();
  }
  down() {
    this.#connected = false;
    this.#leaving = 0;
    if (this.phase === "asked" || this.phase === "live" || this.phase === "waiting" && this.#then === "subscribe") {
      this.phase = "idle";
    }
  }
  due(n) {
    if (this.phase !== "waiting" || n !== this.#n) return;
    if (this.#then === "read") this.#read();
    else this.#resume();
  }
  /** Subscribes again, to see whether anybody is there. False if there is no subscription. */
  probe() {
    if (this.phase !== "live" || this.#leaving) return false;
    this.#leave();
    this.#resume();
    return true;
  }
  // ------------------------------------------------------------------------------------------------- the frames
  subscribed(id, epoch, head) {
    if (this.phase !== "asked" || id !== this.#asked) return;
    if (this.#void(epoch)) return;
    this.phase = "live";
    this.head = head;
    this.#leaving = 0;
    this.#stuck = -1;
  }
  event(f) {
    if (this.phase !== "live" || this.#leaving) return;
    const held = this.held;
    const after = f.offset - 1 - (f.conflated ?? 0);
    if (after === held.cursor.offset) this.#together = [];
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
  get #reached() {
    return this.#together.at(-1) ?? this.held.cursor;
  }
  reset(ms) {
    if (this.phase !== "asked" && this.phase !== "live" || this.#leaving) return;
    this.phase = "idle";
    this.#again("read", ms);
  }
  heartbeat(epoch, head) {
    if (this.phase !== "asked" && this.phase !== "live") return;
    const live = this.phase === "live";
    if (live && this.#void(epoch)) return;
    const { offset } = this.#reached;
    if (live && isInteger(head)) this.head = head;
    if (live && head === offset) {
      this.#stuck = -1;
      this.#strikes = 0;
    } else if (this.#stuck === offset) {
      this.#again("subscribe");
    } else {
      if (this.#stuck >= 0) this.#strikes = 0;
      this.#stuck = offset;
    }
  }
  unsubscribed(id) {
    if (id === this.#leaving) this.#leaving = 0;
  }
  /** A request was refused. Returns whether that ends the attempt. */
  refused(id, code) {
    if (id === this.#leaving) this.#leaving = 0;
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
  #void(epoch) {
    const { pending, epoch: own } = this.held;
    if (pending.length === 0 || epoch === own) return false;
    this.#again("read");
    return true;
  }
  #read() {
    this.phase = "reading";
    this.#ports.read(++this.#n);
  }
  #resume() {
    this.phase = "idle";
    this.#subscribe();
  }
  #subscribe() {
    if (this.phase !== "idle" || !this.#connected || !this.held) return;
    this.phase = "asked";
    this.#together = [];
    this.#stuck = -1;
    this.#asked = this.#ports.subscribe(formatCursor(this.held.cursor));
  }
  #leave() {
    if (this.#connected && (this.phase === "asked" || this.phase === "live")) this.#leaving = this.#ports.unsubscribe();
  }
  /** Heals: at once the first time, later with growing pauses, and by the snapshot if subscribing does not help. */
  #again(then, ms = 0) {
    this.#leave();
    const attempt = ++this.#strikes;
    if (attempt > RESUBSCRIBES) then = "read";
    if (ms > 0 || attempt > 1) this.#wait(then, ms, attempt);
    else if (then === "read") this.#read();
    else this.#resume();
  }
  #wait(then, ms, attempt) {
    this.phase = "waiting";
    this.#then = then;
    this.#ports.wait(++this.#n, ms, attempt);
  }
};

// src/snapshot.ts
var retryAfter = (response) => Math.min(Number(response.headers.get("Retry-After")) || 0, 300) * 1e3;
var unread = (message, final, ms = 0) => Object.assign(new Error(message), { final, ms });
async function read(source, fetch, signal) {
  const aborted = new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  const answer = (async () => typeof source === "function" ? source(signal) : get(String(source), fetch, signal))();
  return check(await Promise.race([answer, aborted]));
}
async function get(url, fetch, signal) {
  const response = await fetch(url, {
    signal,
    redirect: "manual",
    cache: "no-store",
    headers: { Accept: "application/json" }
  });
  const { ok, status, type } = response;
  if (!ok) {
    const moved = type === "opaqueredirect" || status >= 300 && status < 400;
    const passing = status >= 500 || [408, 425, 429].includes(status);
    throw unread(`${url} answered ${moved ? "with a redirect" : status}`, !passing, retryAfter(response));
  }
  try {
    return await response.json();
  } catch (thrown) {
    throw unread(`${url} did not answer with JSON: ${reason(thrown)}`, true);
  }
}
function check(raw) {
  const cursor = parseCursor(raw?.cursor);
  const what = !cursor ? "cursor" : !isEpoch(raw.epoch) ? "epoch" : !Array.isArray(raw.pending) || !raw.pending.every(isInteger) ? "pending ids" : raw.state === void 0 ? "state" : void 0;
  if (what) throw unread(`it has no valid ${what}`, true);
  return { state: raw.state, cursor, pending: [...raw.pending], epoch: raw.epoch };
}

// src/topic.ts
var SNAPSHOT_WITHIN = 3e4;
var AGAIN_BASE = 250;
var AGAIN_CAP = 3e4;
var Subject = class {
  name;
  key;
  machine;
  view = { status: "loading", state: void 0, cursor: void 0, error: void 0, optimistic: false };
  /** Those who follow it: each is to be closed. */
  users = /* @__PURE__ */ new Set();
  #host;
  #options;
  #listeners = /* @__PURE__ */ new Set();
  #layers = [];
  #shown;
  #error;
  #reading;
  #timer;
  constructor(name, options, host) {
    this.name = name;
    this.key = options.key ?? "";
    this.#host = host;
    this.#options = options;
    this.machine = new Machine({
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
      replaced: () => this.#filter((layer) => layer.replaced())
    });
  }
  async start() {
    let kept;
    try {
      const snapshot = await this.#options.store?.load(this.#storeKey);
      if (snapshot) kept = check(snapshot);
    } catch (thrown) {
      this.fail("store", "what was kept is of no use", thrown);
    }
    if (this.machine.phase === "closed") return;
    this.machine.start(kept);
    this.publish();
  }
  close() {
    this.machine.close();
    this.#reading?.abort();
    this.#host.env.clearTimeout(this.#timer);
    this.#layers = [];
    this.#listeners.clear();
  }
  listen(listener) {
    const own = (view) => listener(view);
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }
  fail(kind, message, cause, final = false) {
    const error = new CommitcastError(kind, message, { topic: this.name, cause, final });
    this.#host.report(error);
    return error;
  }
  /** The server refused a request of this topic. */
  refused(id, code, message) {
    if (this.machine.refused(id, code)) this.#error = this.fail("refused", `${code}: ${message}`, void 0, true);
  }
  /** Shows what there is to show, if it has changed. */
  publish() {
    const { machine } = this;
    const { held } = machine;
    const { failed, lost } = this.#host.trouble;
    if (machine.phase === "closed") return;
    if (machine.phase !== "failed" && machine.phase !== "reading" && machine.phase !== "waiting") this.#error = void 0;
    const error = failed ?? this.#error;
    const moved = this.#shown?.held !== held;
    if (moved || this.#shown?.layers !== this.#layers) {
      const state2 = held && this.#layered(held.state);
      this.#shown = { held, layers: this.#layers, state: state2 };
    }
    const { state } = this.#shown;
    const status = error?.final ? "failed" : lost ? "offline" : !held ? "loading" : machine.current ? "live" : "catching-up";
    const optimistic = this.#layers.some((layer) => layer.optimistic);
    const cursor = held && formatCursor(held.cursor);
    const old = this.view;
    if (moved && held) {
      const { pending, epoch } = held;
      this.#call("store.save", () => this.#options.store?.save(this.#storeKey, { state: held.state, cursor, pending, epoch }));
    }
    const next = { status, state, cursor, error, optimistic };
    if (Object.keys(next).every((field) => next[field] === old[field])) return;
    this.view = Object.freeze(next);
    for (const listener of [...this.#listeners]) this.#call("a listener", () => listener(this.view));
  }
  /** Shows a change on top of the state. Returns how to take it away. */
  layer(layer) {
    this.#layers = [...this.#layers, layer];
    this.publish();
    return () => {
      this.#filter((other) => other === layer);
      this.publish();
    };
  }
  // ------------------------------------------------------------------------------------------------------------
  async #read(n) {
    const { env, fetch } = this.#host;
    this.#reading?.abort();
    const reading = this.#reading = new AbortController();
    const timer = env.setTimeout(() => reading.abort(new Error("longer than 30 s")), SNAPSHOT_WITHIN);
    try {
      const held = await read(this.#options.snapshot, fetch, reading.signal);
      this.machine.snapshot(n, held);
    } catch (thrown) {
      if (reading === this.#reading && this.machine.phase === "reading") {
        const { final, ms } = thrown ?? {};
        this.#error = this.fail("snapshot", "no snapshot", thrown, final);
        this.machine.unread(n, ms);
      }
    }
    env.clearTimeout(timer);
    this.publish();
  }
  #apply(state, event) {
    try {
      const next = this.#options.apply(state, event);
      if (next === void 0 || typeof next?.then === "function") throw new TypeError("it must return the new state");
      return next;
    } catch (thrown) {
      this.fail("apply", `apply failed at ${event.epoch}:${event.offset} (${event.type})`, thrown);
      throw thrown;
    }
  }
  #passed(event, held) {
    this.#filter((layer) => layer.passed(event));
    if (!event.skip && !held) this.#call("onevent", () => this.#options.onevent?.(event, this.machine.held.state));
  }
  #layered(state) {
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
  #call(what, f) {
    guard(what, this.#host.report, this.name, f);
  }
  #filter(done) {
    if (this.#layers.length > 0) this.#layers = this.#layers.filter((layer) => !done(layer));
  }
  get #storeKey() {
    return `${this.name} ${this.key}`;
  }
};

// src/feed.ts
function connect(options) {
  return new Feed(options);
}
var Feed = class {
  #options;
  #env;
  #link;
  #subjects = /* @__PURE__ */ new Map();
  #left = /* @__PURE__ */ new Set();
  // topics given up in this connection: what still comes of them is no surprise
  #said = /* @__PURE__ */ new Set();
  // kinds of bad frames that were reported in this connection
  #requests = /* @__PURE__ */ new Map();
  #id = 0;
  #failed;
  constructor(options) {
    this.#options = options;
    this.#env = options.env ?? here;
    const WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!WebSocket) throw new TypeError("no WebSocket: give one");
    const url = new URL(options.url, globalThis.location?.href);
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
        if (state !== "failed") this.#failed = void 0;
        guard("onconnection", (e) => this.report(e), void 0, () => options.onconnection?.(this.connection));
        this.#each(() => {
        });
      },
      report: (error) => {
        if (error.final) this.#failed = error;
        this.report(error);
      }
    });
  }
  /** How the connection is. Replaced, never changed. */
  get connection() {
    return this.#link.connection;
  }
  /** Follows a topic: reads its snapshot, then applies every event after it. */
  topic(name, options) {
    if (!isTopic(name)) throw new TypeError(`"${name}" is not a topic`);
    if (this.connection.state === "closed") throw new TypeError("the feed is closed");
    let subject = this.#subjects.get(name);
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
  retry() {
    this.#link.retry();
    this.#each((s) => s.machine.retry());
  }
  /** Ends it: connection, topics, timers. */
  close() {
    for (const s of this.#subjects.values()) for (const user of s.users) user.close();
    this.#link.close();
  }
  /** Hands an error to `onerror`. Never throws. */
  report(error) {
    try {
      (this.#options.onerror ?? console.error)(error);
    } catch (thrown) {
      console.error(thrown);
    }
  }
  // ------------------------------------------------------------------------------------------------------------
  #add(name, options) {
    const feed = this;
    const subject = new Subject(name, options, {
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
      report: (error) => this.report(error)
    });
    this.#subjects.set(name, subject);
    if (this.connection.state === "open") subject.machine.up();
    void subject.start();
    this.#link.start();
    return subject;
  }
  #message(text) {
    const touched = /* @__PURE__ */ new Set();
    for (const line of typeof text === "string" ? lines(text) : [""]) {
      let f;
      try {
        f = parse(line);
      } catch (thrown) {
        this.#once("garbage", "not a frame", thrown);
      }
      if (f) this.#frame(f, touched);
    }
    for (const s of touched) s.publish();
  }
  #frame(f, touched) {
    switch (f.op) {
      case "hello":
        return this.#link.hello(f);
      case "reconnect":
        return this.#link.hint(f.in_ms);
      case "heartbeat":
        for (const [name, s2] of this.#subjects) {
          s2.machine.heartbeat(epochOf(f, name), f.heads[name]);
          touched.add(s2);
        }
        return;
      case "error": {
        const s2 = this.#requests.get(f.id);
        this.#requests.delete(f.id);
        if (!s2) return this.#once("refused", `refused: ${f.code}: ${f.message}`);
        s2.refused(f.id, f.code, f.message);
        touched.add(s2);
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
  #once(kind, message, cause) {
    if (this.#said.has(kind)) return;
    this.#said.add(kind);
    this.report(new CommitcastError(kind, message, { cause }));
  }
  #each(f) {
    for (const s of [...this.#subjects.values()]) {
      f(s);
      s.publish();
    }
  }
};
var Topic = class {
  #subject;
  #release;
  #ends = /* @__PURE__ */ new Set();
  // of listeners and iterators of this handle
  #closed = false;
  /** Made by `feed.topic`. */
  constructor(subject, release) {
    this.#subject = subject;
    this.#release = release;
    subject.users.add(this);
  }
  get name() {
    return this.#subject.name;
  }
  /** What to show now. Replaced, never changed. */
  get view() {
    return this.#subject.view;
  }
  /** Calls `listener` after each change, at most once a message. Returns how to stop. */
  subscribe = (listener) => {
    if (this.#closed) return () => {
    };
    const stop = this.#subject.listen(listener);
    this.#ends.add(stop);
    return () => {
      this.#ends.delete(stop);
      stop();
    };
  };
  /** Yields the view, then the newest after each change: a slow reader misses views, never the last. */
  async *[Symbol.asyncIterator]() {
    let shown;
    let wake;
    const call = () => wake?.();
    const stop = this.subscribe(call);
    this.#ends.add(call);
    try {
      while (!this.#closed) {
        if (shown === this.view) await new Promise((resolve) => wake = resolve);
        else yield shown = this.view;
      }
    } finally {
      this.#ends.delete(call);
      stop();
    }
  }
  /** Reads the snapshot again. `why` is reported: the state was found wrong. */
  reread(why) {
    if (why) this.#subject.fail("diverged", why);
    this.#subject.machine.reread();
    this.#subject.publish();
  }
  /** Shows a change on top of the state; returns how to take it away. `act` does this. */
  layer(layer) {
    return this.#subject.layer(layer);
  }
  /** Stops following, unless somebody else does. */
  close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const end of this.#ends) end();
    this.#subject.users.delete(this);
    this.#release();
  }
};

// src/optimistic.ts
var SETTLE_WITHIN = 1e4;
var SEEN = 4096;
function expect(topic, key, change, env) {
  const seen = /* @__PURE__ */ new Set();
  let awaited;
  let replaced = false;
  let arrived;
  let timer;
  let resolve;
  const done = (how) => {
    arrived ??= how;
    env.clearTimeout(timer);
    resolve?.(arrived);
    return true;
  };
  const remove = topic.layer({
    optimistic: change !== void 0,
    change: change ?? ((state) => state),
    passed(event) {
      if (event.headers?.["idempotency-key"] === key) return done(true);
      if (seen.size < SEEN) seen.add(event.id);
      return awaited !== void 0 && awaited.delete(event.id) && awaited.size === 0 && done(true);
    },
    // Shown a moment late, a change was true a moment ago. Shown twice, it never was.
    replaced() {
      replaced = true;
      return awaited !== void 0 && done(false);
    }
  });
  return {
    drop() {
      done(false);
      remove();
    },
    settle(ids) {
      awaited = new Set(ids.filter((id) => !seen.has(id)));
      if (awaited.size === 0) done(ids.length > 0);
      else if (replaced) done(false);
      if (arrived !== void 0) {
        remove();
        return Promise.resolve(arrived);
      }
      timer = env.setTimeout(() => {
        done(false);
        remove();
      }, SETTLE_WITHIN);
      return new Promise((r) => resolve = r);
    }
  };
}

// src/act.ts
var ActError = class extends Error {
  name = "ActError";
  /** Of the last answer; 0 if there was none. */
  status;
  /** Its body, as JSON if it was. */
  body;
  /** Whether it may have been done: the answer was lost. Repeat it with the same key to find out. */
  unknown;
  key;
  constructor(message, key, status, unknown, body, cause) {
    super(message, { cause });
    this.key = key;
    this.status = status;
    this.unknown = unknown;
    this.body = body;
  }
};
var RETRY_BASE2 = 300;
var RETRY_CAP2 = 1e4;
var AGAIN = [408, 425, 429, 502, 503, 504];
async function act(request2, options = {}) {
  const { topic, optimistic, signal } = options;
  const key = options.key ?? newKey();
  const cursor = topic?.view.cursor;
  const saw = typeof options.saw === "number" && cursor !== void 0 ? `${cursor};${options.saw}` : options.saw ?? cursor;
  const headers = new Headers(request2.headers);
  headers.set("Idempotency-Key", key);
  if (saw !== void 0) headers.set("Commitcast-Saw", String(saw));
  if (request2.json !== void 0 && !headers.has("Content-Type")) headers.set("Content-Type", "application/json");
  const init = {
    method: request2.method ?? "POST",
    headers,
    body: request2.json === void 0 ? request2.body ?? null : JSON.stringify(request2.json)
  };
  signal?.throwIfAborted();
  const expected = topic && expect(topic, key, optimistic, options.env ?? here);
  try {
    const { response, body } = await send(String(request2.url), init, key, options);
    if (response.status === 409) {
      expected?.drop();
      return { stale: true, fresh: body, response };
    }
    if (!response.ok) throw new ActError(`${request2.url} answered ${response.status}`, key, response.status, false, body);
    const shown = expected?.settle(eventIDs(body, response, options.events)) ?? Promise.resolve(false);
    return { stale: false, data: body, response, shown };
  } catch (thrown) {
    expected?.drop();
    throw thrown;
  }
}
async function send(url, init, key, options) {
  const { signal, attempts = 5, timeout = 15e3, fetch = globalThis.fetch, env = here } = options;
  for (let attempt = 1; ; attempt++) {
    const limit = new AbortController();
    const stop = () => limit.abort(signal.reason);
    const timer = env.setTimeout(() => limit.abort(new Error(`no answer in ${timeout} ms`)), timeout);
    signal?.addEventListener("abort", stop);
    let pause = 0;
    try {
      const response = await fetch(url, { ...init, signal: limit.signal });
      const text = await response.text();
      if (!AGAIN.includes(response.status) || attempt >= attempts) return { response, body: decode(text) };
      pause = retryAfter(response);
    } catch (thrown) {
      signal?.throwIfAborted();
      if (attempt >= attempts) {
        throw new ActError(`no answer from ${url}: ${reason(thrown)}`, key, 0, true, void 0, thrown);
      }
    } finally {
      env.clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
    await sleep(pause + jitter(env, RETRY_BASE2, attempt, RETRY_CAP2), env, signal);
  }
}
function sleep(ms, env, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      env.clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = env.setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
function decode(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
function eventIDs(body, response, find) {
  const found = find ? find(body, response) : (response.headers.get("Commitcast-Event") ?? "").split(",").map(Number);
  return [found ?? []].flat().filter((id) => Number.isSafeInteger(id) && id > 0);
}
var newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

// src/digest.ts
var EVERY = 6e4;
var CONFIRM = 3e3;
var TIMEOUT = 15e3;
function digest(topic, options) {
  const { env = here, every = EVERY, of, ondiverge } = options;
  const fetch = options.fetch ?? globalThis.fetch;
  let last;
  let doubt;
  let told;
  let behind;
  let timer;
  let busy = false;
  let stopped = false;
  const plan = (ms) => {
    env.clearTimeout(timer);
    if (!stopped) timer = env.setTimeout(() => void poll(), ms);
  };
  const later = () => plan(every * (0.5 + env.random()));
  const deaf = env.listen(() => {
    if (!env.hidden() && !busy) plan(env.random() * Math.min(every, 2e3));
  });
  async function poll() {
    if (env.hidden()) return;
    busy = true;
    const limit = new AbortController();
    const out = env.setTimeout(() => limit.abort(), TIMEOUT);
    try {
      const response = await fetch(String(options.url), {
        signal: limit.signal,
        cache: "no-store",
        headers: last ? { "If-None-Match": last.etag } : {}
      });
      if (response.status === 304 || response.ok) {
        const before = last;
        if (response.ok) last = sighting(await response.json(), response);
        if (!stopped && last && look(last, before)) return plan(CONFIRM);
      }
    } catch {
    } finally {
      env.clearTimeout(out);
      busy = false;
    }
    later();
  }
  function look(now, before) {
    const { status, cursor, state, optimistic } = topic.view;
    const own = parseCursor(cursor);
    const theirs = parseCursor(now.cursor);
    if (status !== "live" || !own || optimistic) return false;
    if (own.offset < theirs.offset) {
      if (behind === cursor) return diverge("the database is ahead, and nothing comes", now);
      behind = cursor;
      return true;
    }
    behind = void 0;
    if (own.offset > theirs.offset) return false;
    const changed = base?.cursor === now.cursor && base.etag !== now.etag;
    let differs = false;
    if (of && now.digest !== void 0) {
      try {
        differs = of(state) !== now.digest;
      } catch (thrown) {
        topic.reread(`the digest of the state failed: ${reason(thrown)}`);
      }
    }
    if (!changed && !differs) {
      if (before?.cursor !== now.cursor) base = now;
      doubt = void 0;
      return false;
    }
    const difference = `${now.cursor} ${now.etag}`;
    if (doubt !== difference) {
      doubt = difference;
      return true;
    }
    base = now;
    return diverge(differs ? "the state differs from the database" : "the data changed without an event", now);
  }
  let base;
  function diverge(why, now) {
    doubt = behind = void 0;
    const difference = `${why} ${now.cursor} ${now.etag}`;
    if (told === difference) return false;
    told = difference;
    try {
      ondiverge?.({ topic: topic.name, cursor: now.cursor, reason: why });
    } finally {
      topic.reread(`${why} (at ${now.cursor})`);
    }
    return false;
  }
  later();
  return () => {
    stopped = true;
    env.clearTimeout(timer);
    deaf();
  };
}
function sighting(body, response) {
  const etag = response.headers.get("ETag");
  if (!etag || !parseCursor(body?.cursor)) throw new TypeError("not a digest");
  return { cursor: body.cursor, etag, digest: body.digest };
}
export {
  ActError,
  CommitcastError,
  act,
  connect,
  digest
};
