// The real connection, shared by the sockets of many tabs. A server carries each topic once a connection, so a second
// follower joins the first one's subscription, or has it begin again from where the second one stands: events then come
// twice to the first, who drops them. Nobody is joined to a history that the server, or this file, has not checked.

import type { Env, Socket } from "./env.js";
import { epochOf, formatCursor, lines, parse, parseCursor, request, type Cursor, type Frame } from "./wire.js";

/** What a hub says to sockets: to one, to those in a topic, or to all. */
export type Out =
  | { op: "open"; socket: string; join?: undefined; topic?: undefined }
  | { op: "close"; socket?: string; code: number; reason: string }
  | { op: "line"; socket?: string; topic?: string; join?: boolean; line: string };

/** A subscribe of a socket. */
interface Wish {
  socket: string;
  id: number;
  after: Cursor | undefined;
}

interface Channel {
  name: string;
  followers: Set<string>;
  epoch: string | undefined; // as the server named it last
  at: Cursor | undefined; // of the last event, while subscribed
  fence: Cursor | undefined; // the furthest that any follower is
  asked: { id: number; after: Cursor | undefined; wish: Wish | undefined } | undefined; // a subscribe that is not answered
  wishes: Wish[];
  stuck: number; // the offset at the last heartbeat whose head was another
  ahead: Wish[]; // wait for the subscription to reach their cursors
}

const RESET_SPREAD = 1_000;

export class Hub {
  readonly #dial: () => Socket;
  readonly #env: Env;
  readonly #post: (out: Out[]) => void;
  readonly #living: () => Promise<(socket: string) => boolean>;
  readonly #sockets = new Set<string>();
  readonly #channels = new Map<string, Channel>();
  readonly #leaving = new Map<string, number>(); // unsubscribes without an answer: what comes before it is of the past
  #ws: Socket | undefined;
  #open = false;
  #auth: string | undefined;
  #hello: string | undefined;
  #id = 0;
  #out: Out[] = [];

  constructor(
    dial: () => Socket, env: Env, post: (out: Out[]) => void, living: () => Promise<(socket: string) => boolean>,
  ) {
    this.#dial = dial;
    this.#env = env;
    this.#post = post;
    this.#living = living;
  }

  /** Takes what a socket says. */
  receive(socket: string, op: "open" | "send" | "close", text: string): void {
    if (op === "open") this.#enter(socket);
    else if (op === "close") this.#leave(socket);
    else if (this.#sockets.has(socket)) this.#request(socket, text);
    this.#flush();
  }

  close(): void {
    const ws = this.#ws;
    this.#ws = undefined;
    if (!ws) return;
    ws.onopen = ws.onmessage = ws.onclose = null;
    try {
      ws.close(1000);
    } catch {}
  }

  // ------------------------------------------------------------------------------------------------- the sockets

  #enter(socket: string): void {
    if (this.#sockets.has(socket)) return;
    this.#sockets.add(socket);
    this.#out.push({ op: "open", socket });
    if (this.#hello) this.#out.push({ op: "line", socket, line: this.#hello });
    if (!this.#ws) this.#connect();
  }

  #leave(socket: string): void {
    if (!this.#sockets.delete(socket)) return;
    for (const c of [...this.#channels.values()]) this.#part(c, socket);
    if (this.#sockets.size === 0) this.#drop();
  }

  #request(socket: string, text: string): void {
    const { op, id, topic, after } = JSON.parse(text);
    if (op === "auth") {
      if (this.#auth === undefined) {
        this.#auth = text;
        if (this.#open) this.#ws!.send(text);
      }
    } else if (op === "subscribe") {
      let c = this.#channels.get(topic);
      if (!c) {
        c = {
          name: topic, followers: new Set(), epoch: undefined, at: undefined, fence: undefined, asked: undefined, wishes: [], stuck: -1,
          ahead: [],
        };
        this.#channels.set(topic, c);
      }
      c.wishes.push({ socket, id, after: parseCursor(after) });
      this.#next(c);
    } else if (op === "unsubscribe") {
      this.#tell({ op: "line", socket, topic, join: false, line: JSON.stringify({ op: "unsubscribed", id, topic }) });
      const c = this.#channels.get(topic);
      if (c) this.#part(c, socket);
    }
  }

  /** Takes a socket out of a topic. */
  #part(c: Channel, socket: string): void {
    const others = (w: Wish): boolean => w.socket !== socket;
    c.followers.delete(socket);
    c.wishes = c.wishes.filter(others);
    c.ahead = c.ahead.filter(others);
    if (c.asked?.wish?.socket === socket) c.asked.wish = undefined;
    if (c.followers.size + c.wishes.length + c.ahead.length > 0 || c.asked?.wish) return;
    this.#channels.delete(c.name);
    if (c.at || c.asked) this.#quit(c);
  }

  /** Sees to the next wish. */
  #next(c: Channel): void {
    while (!c.asked && c.wishes.length > 0) {
      const wish = c.wishes.shift()!;
      const { after } = wish;
      if (after && c.at && formatCursor(after) === formatCursor(c.at)) this.#join(c, wish);
      else if (after && c.at && after.offset > c.at.offset && !c.ahead.some((w) => w.socket === wish.socket)) c.ahead.push(wish);
      else this.#ask(c, after, wish);
    }
  }

  #ask(c: Channel, after: Cursor | undefined, wish: Wish | undefined): void {
    if (c.at) this.#quit(c);
    c.at = undefined;
    c.asked = { id: ++this.#id, after, wish };
    this.#ws?.send(request("subscribe", this.#id, c.name, after && formatCursor(after)));
  }

  #quit(c: Channel): void {
    this.#leaving.set(c.name, ++this.#id);
    this.#ws?.send(request("unsubscribe", this.#id, c.name));
  }

  /** From here on the socket gets what follows `c.at`. */
  #join(c: Channel, { socket, id }: Wish): void {
    c.followers.add(socket);
    const { epoch, offset } = c.at!;
    const line = JSON.stringify({ op: "subscribed", id, topic: c.name, epoch: c.epoch ?? epoch, after: offset, head: offset });
    this.#tell({ op: "line", socket, topic: c.name, join: true, line });
  }

  #tell(out: Out): void {
    this.#out.push(out);
  }

  #flush(): void {
    if (this.#out.length === 0) return;
    const out = this.#out;
    this.#out = [];
    this.#post(out);
  }

  // ---------------------------------------------------------------------------------------------- the connection

  #connect(): void {
    let ws: Socket;
    try {
      ws = this.#dial();
    } catch {
      return this.#over(1006, "cannot connect");
    }
    this.#ws = ws;
    ws.onopen = () => {
      this.#open = true;
      if (this.#auth !== undefined) ws.send(this.#auth);
    };
    ws.onerror = () => {};
    ws.onclose = (e) => this.#over(e.code, e.reason);
    ws.onmessage = (e) => {
      for (const line of typeof e.data === "string" ? lines(e.data) : [""]) {
        let f: Frame | undefined;
        try {
          f = parse(line);
        } catch {} // each feed reports it
        if (f) this.#frame(f, line);
        else this.#tell({ op: "line", line });
      }
      this.#flush();
    };
  }

  /** The connection has ended: so has every socket. */
  #over(code: number, reason: string): void {
    this.#drop();
    this.#sockets.clear();
    this.#tell({ op: "close", code, reason });
    this.#flush();
  }

  #drop(): void {
    this.close();
    this.#open = false;
    this.#auth = this.#hello = undefined;
    this.#channels.clear();
    this.#leaving.clear();
  }

  #frame(f: Frame, line: string): void {
    switch (f.op) {
      case "hello":
        this.#hello = line;
        return this.#tell({ op: "line", line });
      case "heartbeat":
        this.#tell({ op: "line", line });
        for (const c of [...this.#channels.values()]) {
          c.epoch = epochOf(f, c.name);
          const { at } = c;
          if (!at || c.asked) continue;
          const head = f.heads[c.name];
          const stuck = c.stuck === at.offset && head !== at.offset; // two heartbeats: the subscription lost something
          c.stuck = head === at.offset ? -1 : at.offset;
          const wish = stuck || head === at.offset ? c.ahead.shift() : undefined; // ahead of all there is: let the server say so
          if (wish || stuck) this.#ask(c, wish?.after ?? at, wish);
        }
        void this.#prune();
        return;
      case "reconnect":
        return this.#tell({ op: "line", line });
      case "error": {
        this.#arrived(f.id);
        const c = [...this.#channels.values()].find((c) => c.asked?.id === f.id);
        if (!c) return;
        const { wish, after } = c.asked!;
        c.asked = undefined;
        if (f.code === "already_subscribed") {
          this.#quit(c);
          return this.#ask(c, after, wish);
        }
        if (wish) this.#tell({ op: "line", socket: wish.socket, line: JSON.stringify({ ...f, id: wish.id }) });
        return this.#rest(c);
      }
      case "unsubscribed":
        return this.#arrived(f.id);
    }
    const c = this.#channels.get(f.topic);
    if (!c) return; // of a topic that was left
    if (f.op !== "event") c.epoch = f.epoch;
    if (f.op === "subscribed") {
      if (c.asked?.id !== f.id) return;
      const { wish, after } = c.asked;
      c.asked = undefined;
      c.at = after ?? { epoch: f.epoch, offset: f.after };
      if (!c.fence || c.at.offset > c.fence.offset) c.fence = c.at;
      c.stuck = -1;
      this.#leaving.delete(f.topic);
      if (wish) {
        c.followers.add(wish.socket);
        this.#tell({ op: "line", socket: wish.socket, topic: c.name, join: true, line: JSON.stringify({ ...f, id: wish.id }) });
      }
      this.#next(c);
    } else if (this.#leaving.has(f.topic)) {
      return; // of the subscription before
    } else if (f.op === "event") {
      if (!c.asked && c.at) this.#event(c, f.epoch, f.offset, line);
    } else {
      const wish = c.asked?.wish;
      if (!wish) return this.#resetAll(c, line);
      // The one who asked cannot go on from its cursor. The others can, perhaps, from theirs.
      c.asked = undefined;
      c.followers.delete(wish.socket);
      this.#tell({ op: "line", socket: wish.socket, topic: c.name, join: false, line });
      this.#rest(c);
    }
  }

  #arrived(id: number): void {
    for (const [topic, leaving] of this.#leaving) if (leaving === id) this.#leaving.delete(topic);
  }

  #event(c: Channel, epoch: string, offset: number, line: string): void {
    const { fence } = c;
    if (fence && offset === fence.offset && epoch !== fence.epoch) {
      this.#quit(c);
      return this.#resetAll(c, this.#reset(c, epoch, offset)); // what the followers have is of another history
    }
    c.at = { epoch, offset };
    if (!fence || offset > fence.offset) c.fence = c.at;
    this.#tell({ op: "line", topic: c.name, line });
    for (const wish of c.ahead) {
      if (wish.after!.offset !== offset) continue;
      c.ahead = c.ahead.filter((w) => w !== wish);
      if (wish.after!.epoch === epoch) this.#join(c, wish);
      else this.#tell({ op: "line", socket: wish.socket, topic: c.name, join: false, line: this.#reset(c, epoch, offset) });
    }
  }

  /** Goes on for those who follow, after a subscribe for somebody failed. */
  #rest(c: Channel): void {
    if (c.wishes.length > 0) this.#next(c);
    else if (c.followers.size > 0) {
      if (c.fence) this.#ask(c, c.fence, undefined);
      else this.#resetAll(c, this.#reset(c, c.epoch!, 0));
    } else if (c.ahead.length > 0) {
      c.wishes = c.ahead;
      c.ahead = [];
      this.#next(c);
    } else this.#channels.delete(c.name);
  }

  #reset(c: Channel, epoch: string, head: number): string {
    const in_ms = Math.floor(this.#env.random() * RESET_SPREAD);
    return JSON.stringify({ op: "reset", topic: c.name, epoch, head, reason: "epoch", in_ms });
  }

  /** The subscription has ended for all. */
  #resetAll(c: Channel, line: string): void {
    for (const socket of c.followers) this.#tell({ op: "line", socket, topic: c.name, join: false, line });
    c.followers.clear();
    c.at = c.fence = c.asked = undefined;
    c.wishes.push(...c.ahead);
    c.ahead = [];
    if (c.wishes.length > 0) this.#next(c);
    else this.#channels.delete(c.name);
  }

  /** Forgets the sockets of tabs that died without a word. */
  async #prune(): Promise<void> {
    try {
      const lives = await this.#living();
      for (const socket of [...this.#sockets]) if (!lives(socket)) this.#leave(socket);
      this.#flush();
    } catch {} // the next heartbeat tries again
  }
}
