import assert from "node:assert/strict";
import { test } from "node:test";
import { bench, E, event, list, live, shown, until, within } from "./harness.js";
import type { Snapshot } from "../src/index.js";

test("snapshot, pending, replay, live", async () => {
  const b = await bench();
  const seen: string[] = [];
  const topic = b.feed.topic<string, string>("market:42", {
    snapshot: async () => ({ state: "ab", cursor: `${E}:1`, pending: [1003], epoch: E }),
    apply: (state, e) => state + e.data,
    onevent: (e, state) => seen.push(`${e.offset} ${state}`),
  });
  assert.deepEqual(topic.view, { status: "loading", state: undefined, cursor: undefined, error: undefined, optimistic: false });
  const peer = await b.server.accept();
  peer.hello();
  const request = await peer.subscribed("market:42", 4);
  assert.equal(request.after, `${E}:1`);
  await shown(topic, "catching-up", (v) => v.status === "catching-up" && v.state === "ab");
  peer.send(event("market:42", 1, "!"), event("market:42", 2, "c"), event("market:42", 3, "b"));
  peer.send(event("market:42", 4, "d"));
  const view = await shown(topic, "live", (v) => v.status === "live");
  assert.equal(view.state, "abcd");
  assert.equal(view.cursor, `${E}:4`);
  assert.deepEqual(seen, ["2 abc", "4 abcd"]); // 3 was in the snapshot
  assert.deepEqual(b.errors, []);
});

test("a message of many events is shown once", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const views: number[] = [];
  topic.subscribe((v) => views.push(v.state!.length));
  peer.send(...Array.from({ length: 50 }, (_, i) => event("t", i + 1, i)));
  await shown(topic, "50 events", (v) => v.state?.length === 50);
  assert.deepEqual(views, [50]);
});

test("one connection for all topics; each is followed once, and left when the last user closes", async () => {
  const b = await bench();
  const one = b.feed.topic("a", list);
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("a");
  const two = b.feed.topic("b", list);
  await peer.subscribed("b");
  const again = b.feed.topic("a", list);
  await shown(again, "live", (v) => v.status === "live");
  assert.equal(again.view, one.view);
  again.close();
  again.close();
  peer.send(event("a", 1, "x"), event("b", 1, "y"));
  await shown(one, "x", (v) => v.state?.[0] === "x");
  await shown(two, "y", (v) => v.state?.[0] === "y");
  one.close();
  assert.equal((await peer.unsubscribed()).topic, "a");
  peer.send(event("a", 2, "late"), event("b", 2, "z"));
  await shown(two, "z", (v) => v.state?.[1] === "z");
  assert.equal(one.view.state?.length, 1);
  assert.equal(b.server.connections, 1);
  assert.deepEqual(b.errors, []);
  assert.throws(() => b.feed.topic("b", { ...list, key: "other" }), /followed with key ""/);
  assert.throws(() => b.feed.topic("b b", list), /not a topic/);
});

test("the iterator: newest view, slow readers, an end", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const it = topic[Symbol.asyncIterator]();
  assert.equal((await it.next()).value!.status, "live");
  const next = it.next();
  peer.send(event("t", 1, 1));
  assert.deepEqual((await within("a view", next)).value!.state, [1]);
  peer.send(event("t", 2, 2));
  peer.send(event("t", 3, 3));
  await shown(topic, "3", (v) => v.state?.length === 3);
  assert.deepEqual((await it.next()).value!.state, [1, 2, 3]);
  const last = it.next();
  b.feed.close();
  assert.equal((await within("the end", last)).done, true);
});

test("a hole is healed from the own cursor", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send(event("t", 1, 1), event("t", 3, 3));
  await peer.unsubscribed();
  assert.equal((await peer.subscribed("t", 3)).after, `${E}:1`);
  peer.send(event("t", 2, 2), event("t", 3, 3));
  const view = await shown(topic, "live", (v) => v.status === "live" && v.cursor === `${E}:3`);
  assert.deepEqual(view.state, [1, 2, 3]);
});

test("reset: the state stays on the screen, nothing is asked before in_ms", async () => {
  const b = await bench();
  let reads = 0;
  const topic = b.feed.topic<unknown[]>("t", { ...list, snapshot: async () => (reads++, list.snapshot()) });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  peer.send(event("t", 1, 1), { op: "reset", topic: "t", epoch: E, head: 9, reason: "trimmed", in_ms: 340 });
  await shown(topic, "catching-up", (v) => v.status === "catching-up" && v.state?.length === 1);
  b.clock.advance(339);
  assert.equal(reads, 1);
  b.clock.advance(1);
  await peer.subscribed("t");
  assert.equal(reads, 2);
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 0);
});

test("a heartbeat whose head stays ahead", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send({ op: "heartbeat", epoch: E, heads: { t: 1 } });
  await shown(topic, "catching-up", (v) => v.status === "catching-up");
  peer.send({ op: "heartbeat", epoch: E, heads: { t: 1 } });
  await peer.unsubscribed();
  await peer.subscribed("t", 1);
  peer.send(event("t", 1, 1));
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 1);
});

test("topics of two databases: pending ids die with the epoch of their own", async () => {
  const b = await bench();
  const reads = { "market:1": 0, "orders:1": 0 };
  const follow = (name: keyof typeof reads, epoch: string) => b.feed.topic<unknown[]>(name, {
    ...list, snapshot: async () => (reads[name]++, { state: ["read"], cursor: `${epoch}:1`, pending: [1003], epoch }),
  });
  const market = follow("market:1", E);
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("market:1");
  const orders = follow("orders:1", "1-9f3c");
  await peer.subscribed("orders:1", undefined, "1-9f3c");
  await shown(orders, "live", (v) => v.status === "live");
  const heads = { "market:1": 2, "orders:1": 2 };
  peer.send({ op: "heartbeat", epoch: E, heads, epochs: { "orders:1": "1-9f3c" } });
  await shown(orders, "catching-up", (v) => v.status === "catching-up");
  peer.send(event("market:1", 2, "m"), event("market:1", 3, "held"), event("orders:1", 2, "o", { epoch: "1-9f3c" }), event("orders:1", 3, "held", { epoch: "1-9f3c" }));
  assert.deepEqual((await shown(orders, "o", (v) => v.cursor === "1-9f3c:3")).state, ["read", "o"]);
  assert.deepEqual((await shown(market, "m", (v) => v.cursor === `${E}:3`)).state, ["read", "m"]);
  assert.deepEqual(reads, { "market:1": 1, "orders:1": 1 });
  assert.equal(peer.waiting, 0);
});

test("a heartbeat says that a topic is in another epoch: what was pending means nothing there", async () => {
  for (const beat of [{ epoch: "4-9f3c" }, { epoch: E, epochs: { "orders:1": "4-9f3c" } }]) {
    const b = await bench();
    let reads = 0;
    b.feed.topic<unknown[]>("orders:1", { ...list, snapshot: async () => (reads++, { state: [], cursor: `${E}:1`, pending: reads === 1 ? [1003] : [], epoch: E }) });
    const peer = await b.server.accept();
    peer.hello();
    await peer.subscribed("orders:1");
    peer.send({ op: "heartbeat", heads: { "orders:1": 1 }, ...beat });
    await peer.unsubscribed();
    await peer.subscribed("orders:1");
    assert.equal(reads, 2);
  }
});

test("offsets that go backwards, and an event of another history", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send(event("t", 1, 1), event("t", 2, 2), event("t", 1, "again"), event("t", 0, "zero"), event("t", 3, 3));
  await shown(topic, "3", (v) => v.cursor === `${E}:3`);
  assert.deepEqual(topic.view.state, [1, 2, 3]);
  peer.send(event("t", 4, "foreign", { epoch: "2-ffff" }));
  await peer.unsubscribed();
  assert.equal((await peer.next("subscribe")).after, `${E}:3`);
  assert.deepEqual(topic.view.state, [1, 2, 3]);
});

test("garbage from the server: one error, and the state stays right", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.text(`${JSON.stringify(event("t", 1, 1))}\nnot json\n{"op":"event","topic":"t"}\n${JSON.stringify(event("t", 2, 2))}`);
  peer.text("[]");
  peer.text(Buffer.from("binary"));
  peer.text('{"op":"of a later server","topic":"t"}');
  peer.send(event("u", 1, 1), event("u", 2, 2));
  peer.send({ op: "error", id: 0, code: "bad_request", message: "m" });
  peer.send(event("t", 3, 3));
  await shown(topic, "3", (v) => v.state?.length === 3);
  assert.deepEqual(topic.view.state, [1, 2, 3]);
  assert.equal(topic.view.status, "live");
  assert.deepEqual(b.errors.map((e) => e.kind), ["garbage", "topic", "refused"]);
});

test("an event that was garbled is a hole", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.text('{"op":"event","topic":"t","epoch":"3-7d0a","offset":"1","id":1,"type":"x","at":"","data":1}');
  peer.send(event("t", 2, 2));
  await peer.unsubscribed();
  await peer.subscribed("t", 2);
  peer.send(event("t", 1, 1), event("t", 2, 2));
  await shown(topic, "2", (v) => v.state?.length === 2);
  assert.deepEqual(topic.view.state, [1, 2]);
});

test("apply that throws, returns nothing, or a promise: reported, and read again", async () => {
  for (const bad of [() => { throw new Error("no such row"); }, () => undefined, async () => []]) {
    const b = await bench();
    let state: unknown[] = [];
    let cursor = 0;
    const topic = b.feed.topic<unknown[]>("t", {
      snapshot: async () => ({ state, cursor: `${E}:${cursor}`, pending: [], epoch: E }),
      apply: (s, e) => (e.data === "bad" ? (bad() as any) : [...s, e.data]),
    });
    const peer = await b.server.accept();
    peer.hello();
    await peer.subscribed("t");
    state = [1, "from the database", 3];
    cursor = 3;
    peer.send(event("t", 1, 1), event("t", 2, "bad"), event("t", 3, 3));
    await peer.unsubscribed();
    assert.equal((await peer.subscribed("t")).after, `${E}:3`);
    peer.send(event("t", 4, 4));
    await shown(topic, "4", (v) => v.status === "live" && v.cursor === `${E}:4`);
    assert.deepEqual(topic.view.state, [1, "from the database", 3, 4]);
    assert.deepEqual(b.errors.map((e) => e.kind), ["apply"]);
    assert.match(b.errors[0].message, /^t: apply failed at 3-7d0a:2 \(x\)/);
  }
});

test("listeners, onevent, onconnection and onerror that throw harm nobody", async () => {
  const b = await bench({ onconnection: () => { throw new Error("connection"); } });
  const topic = b.feed.topic<unknown[]>("t", { ...list, onevent: () => { throw new Error("event"); } });
  topic.subscribe(() => { throw new Error("listener"); });
  const good: string[] = [];
  topic.subscribe((v) => good.push(v.status));
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  peer.send(event("t", 1, 1));
  await until("live", () => good.at(-1) === "live" && topic.view.state?.length === 1);
  assert.ok(b.errors.every((e) => e.kind === "callback"));
  const words = b.errors.map((e) => e.message).join();
  for (const word of ["connection", "event", "listener"]) assert.match(words, new RegExp(`threw: ${word}`));

  const logged: unknown[] = [];
  const real = console.error;
  console.error = (e: unknown) => logged.push(e);
  try {
    const c = await bench({ onerror: () => { throw new Error("onerror"); } });
    const t = c.feed.topic<unknown[]>("t", { ...list, snapshot: async () => { throw new Error("no"); } });
    await until("the error", () => logged.length > 0);
    assert.equal(t.view.status, "loading");
  } finally {
    console.error = real;
  }
});

const bad: [name: string, answer: (r: any) => void, message: RegExp, final: boolean, pause?: number][] = [
  ["500", (r) => r.writeHead(500).end(), /answered 500/, false],
  ["503 with Retry-After", (r) => r.writeHead(503, { "Retry-After": "7" }).end(), /answered 503/, false, 7_000],
  ["404", (r) => r.writeHead(404).end(), /answered 404/, true],
  ["403", (r) => r.writeHead(403).end(), /answered 403/, true],
  ["a redirect", (r) => r.writeHead(302, { Location: "/login" }).end(), /answered with a redirect/, true],
  ["HTML", (r) => r.end("<html>"), /did not answer with JSON/, true],
  ["no cursor", (r) => r.end('{"state":1,"epoch":"3-7d0a","pending":[]}'), /no valid cursor/, true],
  ["a bad cursor", (r) => r.end('{"state":1,"cursor":"7","epoch":"3-7d0a","pending":[]}'), /no valid cursor/, true],
  ["no epoch", (r) => r.end('{"state":1,"cursor":"3-7d0a:1","pending":[]}'), /no valid epoch/, true],
  ["no pending", (r) => r.end('{"state":1,"cursor":"3-7d0a:1","epoch":"3-7d0a"}'), /no valid pending/, true],
  ["odd pending", (r) => r.end('{"state":1,"cursor":"3-7d0a:1","epoch":"3-7d0a","pending":["7"]}'), /no valid pending/, true],
  ["no state", (r) => r.end('{"cursor":"3-7d0a:1","epoch":"3-7d0a","pending":[]}'), /no valid state/, true],
  ["null", (r) => r.end("null"), /no valid cursor/, true],
];
for (const [name, answer, message, final, pause = 0] of bad) {
  test(`a snapshot endpoint that answers ${name}: one error, tried again, and right in the end`, async () => {
    const b = await bench();
    let asked = 0;
    let broken = true;
    b.server.handlers.set("/snapshot", (_, response) => {
      asked++;
      if (broken) answer(response);
      else response.end(JSON.stringify({ state: ["good"], cursor: `${E}:5`, pending: [], epoch: E }));
    });
    const topic = b.feed.topic<unknown[]>("t", { snapshot: `${b.server.http}/snapshot`, apply: list.apply });
    const peer = await b.server.accept();
    peer.hello();
    await until("the error", () => b.errors.length === 1);
    assert.equal(b.errors[0].kind, "snapshot");
    assert.match(b.errors[0].message, message);
    assert.equal(b.errors[0].final, final);
    assert.equal(topic.view.status, final ? "failed" : "loading");
    assert.equal(topic.view.error, b.errors[0]);
    b.clock.advance(pause);
    assert.equal(asked, 1);
    broken = false;
    b.clock.advance(500);
    assert.equal((await peer.subscribed("t")).after, `${E}:5`);
    await shown(topic, "live", (v) => v.status === "live" && v.error === undefined);
    assert.equal(asked, 2);
    assert.equal(b.errors.length, 1);
  });
}

test("a snapshot that never comes is given up after 30 s; what comes of it later is not used", async () => {
  const b = await bench();
  let resolve!: (s: Snapshot<unknown[]>) => void;
  let signal!: AbortSignal;
  let reads = 0;
  const topic = b.feed.topic<unknown[]>("t", {
    ...list,
    snapshot: (s) => {
      if (reads++ > 0) return list.snapshot();
      signal = s;
      return new Promise((r) => (resolve = r));
    },
  });
  (await b.server.accept()).hello();
  await until("the read", () => reads === 1);
  b.clock.advance(30_000);
  await until("the error", () => b.errors.length === 1);
  assert.equal(signal.aborted, true);
  resolve({ state: ["late"], cursor: `${E}:9`, pending: [], epoch: E });
  b.clock.advance(500);
  const next = await b.server.accept(); // the first connection was silent, too
  next.hello();
  await next.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  assert.deepEqual(topic.view.state, []);
});

test("a snapshot function that throws, rejects, or says that it is final", async () => {
  const b = await bench();
  let reads = 0;
  const topic = b.feed.topic<unknown[]>("t", {
    ...list,
    snapshot: (): Promise<Snapshot<unknown[]>> => {
      switch (++reads) {
        case 1: throw new Error("at once");
        case 2: return Promise.reject("a word");
        case 3: return Promise.reject(undefined);
        case 4: return Promise.reject(Object.assign(new Error("gone"), { final: true, ms: 5_000 }));
        default: return list.snapshot();
      }
    },
  });
  const peer = await b.server.accept();
  peer.hello();
  for (let i = 1; i <= 3; i++) {
    await until("an error", () => b.errors.length === i);
    assert.equal(topic.view.status, "loading");
    b.clock.advance(3_000);
  }
  await until("the last", () => b.errors.length === 4);
  assert.equal(topic.view.status, "failed");
  b.clock.advance(4_999);
  assert.equal(reads, 4);
  b.clock.advance(3_000);
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
});

test("a stale snapshot, behind what was shown, is caught up", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send(event("t", 1, 1), event("t", 2, 2));
  await shown(topic, "2", (v) => v.state?.length === 2);
  topic.reread();
  await peer.unsubscribed();
  assert.equal((await peer.subscribed("t", 2)).after, `${E}:0`);
  await shown(topic, "the old state", (v) => v.state?.length === 0 && v.status === "catching-up");
  peer.send(event("t", 1, 1), event("t", 2, 2));
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 2);
});

test("a snapshot of an older epoch with pending ids is read again", async () => {
  const b = await bench();
  let reads = 0;
  const topic = b.feed.topic<unknown[]>("t", {
    ...list,
    snapshot: async () => (++reads === 1 ? { state: ["phantom"], cursor: `${E}:0`, pending: [1001], epoch: E } : { state: [], cursor: "4-9f3c:0", pending: [], epoch: "4-9f3c" }),
  });
  const peer = await b.server.accept();
  peer.hello("4-9f3c");
  await peer.subscribed("t", 0, "4-9f3c");
  await peer.unsubscribed();
  assert.equal((await peer.subscribed("t", 0, "4-9f3c")).after, "4-9f3c:0");
  await shown(topic, "live", (v) => v.status === "live");
  assert.equal(reads, 2);
  assert.deepEqual(topic.view.state, []);
});

test("forbidden: the topic has failed, the others have not; the next connection asks again", async () => {
  const b = await bench();
  const { topic: good, peer } = await live(b, "good");
  const topic = b.feed.topic("secret", list);
  const f = await peer.next("subscribe");
  peer.send({ op: "error", id: f.id, code: "forbidden", message: "not for you" });
  const view = await shown(topic, "failed", (v) => v.status === "failed");
  assert.equal(view.error!.kind, "refused");
  assert.match(view.error!.message, /^secret: forbidden: not for you/);
  assert.equal(good.view.status, "live");
  b.feed.retry();
  await peer.subscribed("secret");
  await shown(topic, "live", (v) => v.status === "live" && v.error === undefined);
});

test("skip: advance by default, reread by choice", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send({ op: "event", topic: "t", epoch: E, offset: 1, id: 1, skip: true }, event("t", 2, 2));
  await shown(topic, "2", (v) => v.cursor === `${E}:2`);
  assert.deepEqual(topic.view.state, [2]);

  const c = await bench();
  let n = 0;
  const careful = c.feed.topic<unknown[]>("t", {
    ...list, skipped: "reread", snapshot: async () => ({ state: [`read ${n}`], cursor: `${E}:${n++}`, pending: [], epoch: E }),
  });
  const other = await c.server.accept();
  other.hello();
  await other.subscribed("t");
  other.send({ op: "event", topic: "t", epoch: E, offset: 1, id: 1, skip: true });
  await other.unsubscribed();
  await other.subscribed("t");
  await shown(careful, "read 1", (v) => v.state?.[0] === "read 1" && v.status === "live");
});

test("close ends everything: connection, timers, listeners", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  b.feed.close();
  await within("the end", peer.closed);
  assert.equal(b.clock.timers, 0);
  assert.equal(b.clock.listeners, 0);
  assert.equal(b.feed.connection.state, "closed");
  assert.throws(() => b.feed.topic("t", list), /closed/);
  topic.close();
  b.feed.close();
});
