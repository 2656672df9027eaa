import assert from "node:assert/strict";
import { after, test } from "node:test";
import { WebSocket } from "ws";
import { connect, type Feed } from "../src/index.js";
import { share, type Locks } from "../src/share.js";
import { Clock, E, event, list, Server, shown, until, type Peer } from "./harness.js";

/** Web Locks, as far as they are used. */
class FakeLocks implements Locks {
  readonly held = new Map<string, { kick: (e: Error) => void }>();
  readonly #queues = new Map<string, (() => void)[]>();
  request(name: string, { steal = false }: { steal?: boolean }, work: () => Promise<unknown>): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const take = (): void => {
        const lock = { kick: reject };
        this.held.set(name, lock);
        void work().then((v) => {
          if (this.held.get(name) !== lock) return;
          this.held.delete(name);
          resolve(v);
          this.#queues.get(name)?.shift()?.();
        });
      };
      const holder = this.held.get(name);
      if (steal) {
        holder?.kick(new Error("stolen"));
        take();
      } else if (holder) {
        if (!this.#queues.has(name)) this.#queues.set(name, []);
        this.#queues.get(name)!.push(take);
      } else take();
    });
  }
  async query() {
    return { held: [...this.held.keys()].map((name) => ({ name })) };
  }
}

interface Page {
  feed: Feed;
  clock: Clock;
  errors: Error[];
  /** The page dies, or is frozen: it hears nothing, and says nothing. */
  freeze(): void;
}

const pages: Page[] = [];
after(() => pages.forEach((p) => p.feed.close()));
let names = 0;

function browser(server: Server): { page(cursor?: string): Page; locks: FakeLocks } {
  const locks = new FakeLocks();
  const name = `test ${++names}`;
  return {
    locks,
    page() {
      const clock = new Clock();
      clock.chance = 0.1;
      const errors: Error[] = [];
      let frozen = false;
      // A frozen page's real sockets still stand, but nobody reads them.
      class Real extends WebSocket {
        override emit(what: any, ...a: any[]): boolean {
          return frozen && what === "message" ? false : super.emit(what, ...a);
        }
      }
      const RealChannel = globalThis.BroadcastChannel;
      const channels: BroadcastChannel[] = [];
      const Shared = share({ name, locks, WebSocket: Real, env: clock });
      const Wrapped: any = function (url: string, protocol: string) {
        (globalThis as any).BroadcastChannel = class extends RealChannel {
          constructor(n: string) {
            super(n);
            channels.push(this);
          }
        };
        try {
          return new Shared(url, protocol);
        } finally {
          globalThis.BroadcastChannel = RealChannel;
        }
      };
      const feed = connect({ url: server.url, WebSocket: Wrapped, env: clock, onerror: (e) => errors.push(e) });
      const page: Page = {
        feed, clock, errors,
        freeze() {
          frozen = true;
          for (const c of channels) c.close();
        },
      };
      pages.push(page);
      return page;
    },
  };
}

const at = (offset: number, epoch = E) => ({
  ...list,
  snapshot: async () => ({ state: Array.from({ length: offset }, (_, i) => i + 1) as unknown[], cursor: `${epoch}:${offset}`, pending: [], epoch }),
});

async function opened(server: Server): Promise<Peer> {
  const peer = await server.accept();
  peer.hello();
  return peer;
}

test("many pages, one connection, one subscription; events reach all, each once", async () => {
  const server = await Server.start();
  const b = browser(server);
  const topics = [];
  const first = b.page().feed.topic("t", at(0));
  const peer = await opened(server);
  await peer.subscribed("t");
  topics.push(first);
  await shown(first, "live", (v) => v.status === "live");
  for (let i = 0; i < 3; i++) {
    const topic = b.page().feed.topic("t", at(0));
    topics.push(topic);
    await shown(topic, "live", (v) => v.status === "live");
  }
  peer.send(event("t", 1, 1), event("t", 2, 2));
  for (const topic of topics) assert.deepEqual((await shown(topic, "2", (v) => v.state?.length === 2)).state, [1, 2]);
  assert.equal(server.connections, 1);
  assert.equal(peer.waiting, 0);
  for (const p of pages) assert.deepEqual(p.errors, []);
});

test("a page with other topics gets those, and not the first one's", async () => {
  const server = await Server.start();
  const b = browser(server);
  const one = b.page();
  const a = one.feed.topic("a", at(0));
  const peer = await opened(server);
  await peer.subscribed("a");
  const two = b.page();
  const c = two.feed.topic("c", at(0));
  await peer.subscribed("c");
  peer.send(event("a", 1, "for a"), event("c", 1, "for c"));
  await shown(a, "a", (v) => v.state?.[0] === "for a");
  await shown(c, "c", (v) => v.state?.[0] === "for c");
  c.close();
  assert.equal((await peer.unsubscribed()).topic, "c");
  assert.deepEqual([...one.errors, ...two.errors], []);
});

test("a page joins a topic of another database in the epoch of that one", async () => {
  const server = await Server.start();
  const b = browser(server);
  const O = "1-9f3c";
  const first = b.page().feed.topic("orders:1", at(2, O));
  const peer = await opened(server);
  await peer.subscribed("orders:1", 2, O);
  b.page().feed.topic("market:1", at(1));
  await peer.subscribed("market:1", 1); // the newest epoch that was named is that of another topic
  await shown(first, "live", (v) => v.status === "live");
  for (const named of ["before a heartbeat", "after one"]) {
    let reads = 0;
    const joined = b.page().feed.topic<unknown[]>("orders:1", {
      ...list, snapshot: async () => (reads++, { state: [1, 2, 4], cursor: `${O}:2`, pending: [1004], epoch: O }),
    });
    await shown(joined, `live ${named}`, (v) => v.status === "live");
    assert.equal(reads, 1, named);
    joined.close();
    peer.send({ op: "heartbeat", epoch: E, heads: { "orders:1": 2, "market:1": 1 }, epochs: { "orders:1": O } });
  }
  assert.equal(peer.waiting, 0);
});

test("a page that is behind: the subscription begins again from there; who is ahead drops what comes twice", async () => {
  const server = await Server.start();
  const b = browser(server);
  const ahead = b.page().feed.topic("t", at(3));
  const peer = await opened(server);
  await peer.subscribed("t", 3);
  await shown(ahead, "live", (v) => v.status === "live");
  const behind = b.page().feed.topic("t", at(1));
  await peer.unsubscribed();
  assert.equal((await peer.subscribed("t", 3)).after, `${E}:1`);
  peer.send(event("t", 2, 2), event("t", 3, 3), event("t", 4, 4));
  for (const topic of [ahead, behind]) {
    assert.deepEqual((await shown(topic, "4", (v) => v.status === "live" && v.cursor === `${E}:4`)).state, [1, 2, 3, 4]);
  }
});

test("a page that is ahead joins when the subscription gets there, and only into the same history", async () => {
  for (const same of [true, false]) {
    const server = await Server.start();
    const b = browser(server);
    const first = b.page().feed.topic("t", at(1));
    const peer = await opened(server);
    await peer.subscribed("t", 1);
    await shown(first, "live", (v) => v.status === "live");
    let offset = 3;
    const second = b.page().feed.topic<unknown[]>("t", { ...list, snapshot: () => at(offset).snapshot() });
    await shown(second, "a state", (v) => v.state?.length === 3);
    // A wish of a third page, made later, is answered: so the second's has reached the hub.
    const third = b.page().feed.topic("t", at(1));
    await shown(third, "live", (v) => v.status === "live");
    const epoch = same ? E : "4-9f3c";
    offset = 0; // if it has to be read again
    peer.send(event("t", 2, 2, { epoch }), event("t", 3, 3, { epoch }), event("t", 4, 4, { epoch }));
    if (same) {
      assert.deepEqual((await shown(second, "4", (v) => v.status === "live" && v.cursor === `${E}:4`)).state, [1, 2, 3, 4]);
      assert.equal(peer.waiting, 0);
    } else {
      await until("the reset", () => (pages.at(-2)!.clock.advance(100), second.view.state?.length === 0));
    }
  }
});

test("a cursor that is no longer valid resets one page, and the others go on", async () => {
  const server = await Server.start();
  const b = browser(server);
  const good = b.page().feed.topic("t", at(5));
  const peer = await opened(server);
  await peer.subscribed("t", 5);
  await shown(good, "live", (v) => v.status === "live");
  let from = 1;
  const old = b.page().feed.topic<unknown[]>("t", { ...list, snapshot: () => at(from).snapshot() });
  await peer.unsubscribed();
  await peer.next("subscribe");
  from = 5;
  peer.send({ op: "reset", topic: "t", epoch: E, head: 5, reason: "trimmed", in_ms: 0 });
  assert.equal((await peer.subscribed("t", 5)).after, `${E}:5`);
  await shown(old, "live", (v) => v.status === "live" && v.state?.length === 5);
  peer.send(event("t", 6, 6));
  for (const topic of [good, old]) await shown(topic, "6", (v) => v.state?.length === 6);
});

test("a reset of the subscription resets all", async () => {
  const server = await Server.start();
  const b = browser(server);
  const topics = [b.page().feed.topic("t", at(0))];
  const peer = await opened(server);
  await peer.subscribed("t");
  await shown(topics[0], "live", (v) => v.status === "live");
  topics.push(b.page().feed.topic("t", at(0)));
  await shown(topics[1], "live", (v) => v.status === "live");
  peer.send(event("t", 1, "phantom"), { op: "reset", topic: "t", epoch: "4-9f3c", head: 0, reason: "epoch", in_ms: 0 });
  await peer.subscribed("t", 0, "4-9f3c");
  for (const topic of topics) await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 0);
});

test("the page with the connection closes: another takes over, nothing is lost", async () => {
  const server = await Server.start();
  const b = browser(server);
  const leader = b.page();
  const gone = leader.feed.topic("t", at(0));
  const peer = await opened(server);
  await peer.subscribed("t");
  const follower = b.page();
  const topic = follower.feed.topic("t", at(0));
  await shown(topic, "live", (v) => v.status === "live");
  peer.send(event("t", 1, 1));
  await shown(topic, "1", (v) => v.state?.length === 1);
  await shown(gone, "1", (v) => v.state?.length === 1);
  leader.feed.close();
  await until("the take-over", () => follower.feed.connection.state === "waiting");
  follower.clock.advance(500);
  const next = await opened(server);
  assert.equal((await next.subscribed("t", 2)).after, `${E}:1`);
  next.send(event("t", 2, 2));
  await shown(topic, "2", (v) => v.status === "live" && v.state?.length === 2);
  assert.equal(server.connections, 2);
});

test("the page with the connection freezes: its lock is taken", async () => {
  const server = await Server.start();
  const b = browser(server);
  const leader = b.page();
  leader.feed.topic("t", at(0));
  const peer = await opened(server);
  await peer.subscribed("t");
  leader.freeze();
  const follower = b.page();
  const topic = follower.feed.topic("t", at(0));
  await until("the attempt", () => follower.feed.connection.state === "connecting");
  follower.clock.advance(3_000);
  const next = await opened(server);
  await next.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
});

test("a page that dies without a word is forgotten", async () => {
  const server = await Server.start();
  const b = browser(server);
  const leader = b.page();
  leader.feed.topic("t", at(0));
  const peer = await opened(server);
  await peer.subscribed("t");
  const dead = b.page();
  const topic = dead.feed.topic("u", at(0));
  await peer.subscribed("u");
  await shown(topic, "live", (v) => v.status === "live");
  dead.freeze();
  // Its locks go with it; the leader's stay.
  const own = [...b.locks.held.keys()].filter((name) => name.split(" ").length > 4);
  assert.equal(own.length, 2);
  b.locks.held.delete(own[1]);
  peer.send({ op: "heartbeat", epoch: E, heads: { t: 0, u: 0 } });
  assert.equal((await peer.unsubscribed()).topic, "u");
});

test("the end of the connection ends it for all, and all come back when told", async () => {
  const server = await Server.start();
  const b = browser(server);
  const all = [b.page(), b.page()];
  all[0].feed.topic("t", at(0));
  const peer = await opened(server);
  await peer.subscribed("t");
  const topic = all[1].feed.topic("t", at(0));
  await shown(topic, "live", (v) => v.status === "live");
  peer.send({ op: "reconnect", in_ms: 5_000 });
  peer.close(1012, "server is shutting down");
  for (const p of all) {
    await until("waiting", () => p.feed.connection.state === "waiting");
    assert.equal(p.feed.connection.retryAt, p.clock.time + 5_000);
  }
  for (const p of all) p.clock.advance(5_000);
  const next = await opened(server);
  await next.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  assert.equal(server.connections, 2);
});

test("a refusal reaches the one who asked", async () => {
  const server = await Server.start();
  const b = browser(server);
  const one = b.page();
  const good = one.feed.topic("t", at(0));
  const peer = await opened(server);
  await peer.subscribed("t");
  const two = b.page();
  const topic = two.feed.topic("secret", at(0));
  const f = await peer.next("subscribe");
  peer.send({ op: "error", id: f.id, code: "forbidden", message: "no" });
  await shown(topic, "failed", (v) => v.status === "failed");
  assert.equal(good.view.status, "live");
  assert.deepEqual(one.errors, []);
});

test("a subscription that the server has lost is asked for again", async () => {
  const server = await Server.start();
  const b = browser(server);
  const topics = [b.page().feed.topic("t", at(0))];
  const peer = await opened(server);
  await peer.subscribed("t");
  topics.push(b.page().feed.topic("t", at(0)));
  await shown(topics[1], "live", (v) => v.status === "live");
  const beat = { op: "heartbeat", epoch: E, heads: { t: 1 } };
  peer.send(beat);
  peer.send(beat);
  let id = 0;
  await until("live again, both", () => {
    while (peer.waiting > 0) {
      void peer.next().then((f) => {
        if (f.op === "unsubscribe") peer.send({ op: "unsubscribed", id: f.id, topic: "t" });
        else {
          id = f.id;
          peer.send({ op: "subscribed", id: f.id, topic: "t", epoch: E, after: 0, head: 1 }, event("t", 1, 1));
        }
      });
    }
    return topics.every((t) => t.view.status === "live" && t.view.state?.length === 1);
  });
  assert.ok(id > 0);
});

test("without locks each page has its own connection", () => {
  assert.equal(share({ name: "x", WebSocket }), WebSocket);
});
