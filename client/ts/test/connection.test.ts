import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { WebSocket } from "ws";
import { connect, type CommitcastError } from "../src/index.js";
import { bench, Clock, E, event, list, live, shown, until, within } from "./harness.js";

test("a lost connection: offline at once, back within the jitter, from the own cursor, nothing twice", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send(event("t", 1, 1));
  await shown(topic, "1", (v) => v.state?.length === 1);
  peer.cut();
  const view = await shown(topic, "offline", (v) => v.status === "offline");
  assert.deepEqual(view.state, [1]);
  assert.equal(b.feed.connection.state, "waiting");
  assert.equal(b.feed.connection.retryAt, b.clock.time + 250); // half of 500
  b.clock.advance(250);
  const next = await b.server.accept();
  assert.equal(topic.view.status, "offline");
  next.hello();
  assert.equal((await next.subscribed("t", 2)).after, `${E}:1`);
  next.send(event("t", 1, "twice"), event("t", 2, 2));
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 2);
  assert.deepEqual(topic.view.state, [1, 2]);
  assert.deepEqual(b.errors, []);
});

test("backoff: full jitter, doubling, capped at 30 s, and back to the first after a good connection", async () => {
  const b = await bench();
  b.clock.chance = 1 - 1e-9;
  const { peer } = await live(b);
  peer.cut();
  const pauses: number[] = [];
  for (let i = 0; i < 9; i++) {
    await until("waiting", () => b.feed.connection.state === "waiting");
    pauses.push(Math.round(b.feed.connection.retryAt! - b.clock.time));
    b.clock.advance(pauses.at(-1)!);
    (await b.server.accept()).cut();
    await until("the end of it", () => b.feed.connection.state === "waiting");
  }
  assert.deepEqual(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
  b.clock.advance(30_000);
  const good = await b.server.accept();
  good.hello();
  await good.subscribed("t");
  b.clock.advance(6_000);
  good.cut();
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(Math.round(b.feed.connection.retryAt! - b.clock.time), 500);
  b.clock.chance = 0;
  b.clock.advance(500);
  (await b.server.accept()).cut();
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(b.feed.connection.retryAt, b.clock.time);
});

test("the server's word: nobody is back before in_ms", async () => {
  const b = await bench();
  const { peer } = await live(b);
  peer.send({ op: "reconnect", in_ms: 1200 });
  peer.close(1012, "server is shutting down");
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(b.feed.connection.retryAt, b.clock.time + 1200);
  assert.equal(b.feed.connection.reason, "server is shutting down");
  b.clock.happen("online"); // does not overrule it
  b.clock.advance(1199);
  assert.equal(b.feed.connection.state, "waiting");
  b.clock.advance(1);
  await b.server.accept();
});

const vectors = JSON.parse(readFileSync(new URL("../../../../wire/testdata/close.json", import.meta.url), "utf8"));
for (const { code, reason, reconnect } of vectors.codes as { code: number; reason: string; reconnect: boolean }[]) {
  test(`close code ${code}: ${reconnect ? "reconnect" : "do not"}`, async () => {
    const b = await bench({ token: "static" });
    const { topic, peer } = await live(b);
    peer.close(code, reason);
    await shown(topic, "the end", (v) => v.status !== "live");
    assert.equal(b.feed.connection.state, reconnect ? "waiting" : "failed");
    assert.equal(topic.view.status, reconnect ? "offline" : "failed");
    assert.equal(b.errors.length, reconnect ? 0 : 1);
    if (reconnect) return;
    assert.equal(topic.view.error, b.errors[0]);
    assert.deepEqual(topic.view.state, []);
    b.clock.advance(600_000);
    assert.equal(b.feed.connection.state, "failed");
    b.feed.retry();
    const next = await b.server.accept();
    next.hello();
    await next.next("auth");
    await next.subscribed("t");
    await shown(topic, "live", (v) => v.status === "live" && v.error === undefined);
  });
}

test("an overloaded server is given more time", async () => {
  const b = await bench();
  const { peer } = await live(b);
  peer.close(1013, "server is overloaded");
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(b.feed.connection.retryAt, b.clock.time + 4_000);
});

test("auth goes first, with a token that took its time", async () => {
  let give!: (token: string) => void;
  const b = await bench({ token: () => new Promise<string>((resolve) => (give = resolve)) });
  const topic = b.feed.topic("t", list);
  await until("the question", () => give !== undefined);
  assert.equal(b.server.connections, 0);
  give("secret");
  const peer = await b.server.accept();
  peer.hello();
  assert.deepEqual(await peer.next(), { op: "auth", token: "secret" });
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
});

test("a token callback that throws, or rejects: an error, and another attempt", async () => {
  for (const fail of [() => { throw new Error("logged out"); }, () => Promise.reject(new Error("logged out"))]) {
    let asked = 0;
    const b = await bench({ token: () => (++asked === 1 ? fail() : "good") });
    const topic = b.feed.topic("t", list);
    await until("the error", () => b.errors.length === 1);
    assert.equal(b.errors[0].message, "no token: logged out");
    assert.equal(b.errors[0].kind, "token");
    assert.equal(topic.view.status, "offline");
    b.clock.advance(250);
    const peer = await b.server.accept();
    peer.hello();
    assert.equal((await peer.next("auth")).token, "good");
    await peer.subscribed("t");
    await shown(topic, "live", (v) => v.status === "live");
    assert.equal(b.errors.length, 1);
  }
});

test("a token callback that never answers is given up", async () => {
  let asked = 0;
  const b = await bench({ token: () => (++asked === 1 ? new Promise<string>(() => {}) : "good") });
  b.feed.topic("t", list);
  await until("the question", () => asked === 1);
  b.clock.advance(10_250);
  const peer = await b.server.accept();
  assert.equal((await peer.next("auth")).token, "good");
});

test("4401: a new token is asked for; the same one again is final", async () => {
  const tokens = ["old", "new", "new"];
  const asked: boolean[] = [];
  const b = await bench({ token: (refused) => (asked.push(refused), tokens[asked.length - 1] ?? "new") });
  const topic = b.feed.topic("t", list);
  const first = await b.server.accept();
  assert.equal((await first.next("auth")).token, "old");
  first.close(4401, "token refused");
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(b.errors.length, 0);
  b.clock.advance(500);
  const second = await b.server.accept();
  assert.equal((await second.next("auth")).token, "new");
  second.close(4401, "token refused");
  await until("waiting", () => b.feed.connection.state === "waiting");
  b.clock.advance(1_000);
  await shown(topic, "failed", (v) => v.status === "failed");
  assert.deepEqual(asked, [false, true, true]);
  assert.match(b.errors[0].message, /refused the token/);
  assert.equal(b.server.connections, 2);
});

test("silence for two heartbeats ends a connection; a frame does not", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  let beats = 0;
  for (let i = 0; i < 4; i++) {
    b.clock.advance(15_000);
    peer.send({ op: "heartbeat", epoch: E, heads: { t: 0 } }, event("t", ++beats, beats));
    await shown(topic, "an event", (v) => v.state?.length === beats);
  }
  b.clock.advance(29_999);
  assert.equal(b.feed.connection.state, "open");
  b.clock.advance(1);
  assert.equal(b.feed.connection.state, "waiting");
  await within("the end of the silent one", peer.closed);
  b.clock.advance(500);
  const next = await b.server.accept();
  next.hello();
  assert.equal((await next.subscribed("t")).after, `${E}:4`);
});

test("a server that accepts and says nothing is left after 10 s", async () => {
  const b = await bench();
  b.feed.topic("t", list);
  await b.server.accept();
  b.clock.advance(9_999);
  assert.equal(b.feed.connection.state, "connecting");
  b.clock.advance(1);
  assert.equal(b.feed.connection.state, "waiting");
});

test("after a long sleep: reconnect at once", async () => {
  const b = await bench();
  const { topic } = await live(b);
  b.clock.sleep(3_600_000);
  b.clock.advance(0);
  assert.equal(topic.view.status, "offline");
  b.clock.advance(250);
  (await b.server.accept()).hello();
});

test("after a short sleep, with a heartbeat overdue: a probe, and the end if it is not answered", async () => {
  for (const answered of [true, false]) {
    const b = await bench();
    const { topic, peer } = await live(b);
    b.clock.sleep(20_000);
    b.clock.advance(0);
    if (answered) {
      await peer.unsubscribed();
      await peer.subscribed("t");
      await shown(topic, "live", (v) => v.status === "live");
      b.clock.advance(10_000);
      assert.equal(b.feed.connection.state, "open");
    } else {
      await peer.next("unsubscribe");
      b.clock.advance(5_000);
      assert.equal(b.feed.connection.state, "waiting");
    }
  }
});

test("timers that a hidden tab gets late are no sleep, as long as heartbeats come", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  b.clock.isHidden = true;
  for (let i = 1; i <= 4; i++) {
    b.clock.sleep(14_000);
    peer.send({ op: "heartbeat", epoch: E, heads: { t: i - 1 } }, event("t", i, i));
    await shown(topic, "an event", (v) => v.state?.length === i);
    b.clock.advance(0);
  }
  assert.equal(peer.waiting, 0);
  assert.equal(b.feed.connection.state, "open");
});

test("a clock that was set back hides no silence: two heartbeats and a look later the connection is over", async () => {
  const b = await bench();
  const { topic } = await live(b);
  b.clock.set(-900_000);
  b.clock.advance(34_999);
  assert.equal(b.feed.connection.state, "open");
  b.clock.advance(1);
  assert.equal(b.feed.connection.state, "waiting");
  b.clock.advance(250);
  const next = await b.server.accept();
  next.hello();
  await next.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
});

test("a clock that was set back keeps nobody away: what a server asked for once is over, and never longer than 5 minutes", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send({ op: "reconnect", in_ms: 1200 });
  peer.close(1012);
  await until("waiting", () => b.feed.connection.state === "waiting");
  b.clock.advance(1200);
  const next = await b.server.accept();
  next.hello();
  await next.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  b.clock.set(-60_000);
  next.cut();
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(b.feed.connection.retryAt, b.clock.time + 250); // half of 500
  b.clock.advance(250);
  const last = await b.server.accept();
  last.hello();
  await last.subscribed("t");
  last.send({ op: "reconnect", in_ms: 1200 }, event("t", 1, 1));
  await shown(topic, "the event after it", (v) => v.state?.length === 1);
  b.clock.set(-900_000);
  last.cut();
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.equal(b.feed.connection.retryAt, b.clock.time + 300_000);
});

test("online: a probe if connected, and nobody waits longer than a second if not", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  b.clock.happen("online");
  await peer.unsubscribed();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  b.clock.happen("visibilitychange"); // heard of just now: no doubt
  assert.equal(peer.waiting, 0);
  peer.close(1013);
  await until("waiting", () => b.feed.connection.state === "waiting");
  assert.ok(b.feed.connection.retryAt! - b.clock.time > 1_000);
  b.clock.isHidden = true;
  b.clock.happen("visibilitychange");
  assert.ok(b.feed.connection.retryAt! - b.clock.time > 1_000);
  b.clock.isHidden = false;
  b.clock.happen("visibilitychange");
  assert.equal(b.feed.connection.retryAt, b.clock.time + 500);
  for (let i = 0; i < 10; i++) b.clock.happen("online"); // does not put it off
  assert.equal(b.feed.connection.retryAt, b.clock.time + 500);
  b.clock.advance(500);
  await b.server.accept();
  assert.equal(b.server.connections, 2);
});

test("no subscription is lost: many topics, many cuts, all live in the end, each asked for once a connection", async () => {
  const b = await bench();
  const names = Array.from({ length: 40 }, (_, i) => `t${i}`);
  const topics = names.map((name) => b.feed.topic<unknown[]>(name, list));
  for (let round = 1; round <= 4; round++) {
    const peer = await b.server.accept();
    peer.hello();
    const asked = new Set<string>();
    for (const _ of names) {
      const f = await peer.next("subscribe");
      assert.equal(asked.has(f.topic), false);
      asked.add(f.topic);
      peer.send({ op: "subscribed", id: f.id, topic: f.topic, epoch: E, after: round - 1, head: round }, event(f.topic, round, round));
    }
    for (const topic of topics) await shown(topic, "live", (v) => v.status === "live" && v.state?.length === round);
    peer.cut();
    await until("waiting", () => b.feed.connection.state === "waiting");
    b.clock.advance(b.feed.connection.retryAt! - b.clock.time);
  }
  assert.deepEqual(b.errors, []);
});

test("a page opened while offline: offline, then live without help", async () => {
  const b = await bench({ url: "ws://127.0.0.1:1/v1/ws" });
  const topic = b.feed.topic("t", list);
  await shown(topic, "offline", (v) => v.status === "offline" && v.error === undefined);
  await shown(topic, "a state", (v) => v.state !== undefined);
  assert.equal(topic.view.status, "offline");
  assert.deepEqual(b.errors, []);
});

test("another protocol, a bad URL, no WebSocket", async () => {
  const b = await bench();
  const topic = b.feed.topic("t", list);
  const peer = await b.server.accept();
  peer.send({ op: "hello", protocol: "commitcast.v9", epoch: E, heartbeat_ms: 15_000 });
  await shown(topic, "failed", (v) => v.status === "failed");
  assert.match(b.errors[0].message, /speaks commitcast.v9/);

  const c = await bench({ url: "ftp://127.0.0.1/" });
  const other = c.feed.topic("t", list);
  await shown(other, "failed", (v) => v.status === "failed");
  assert.equal(c.errors[0].kind, "connection");

  assert.throws(() => connect({ url: "nonsense" , WebSocket }), /Invalid URL/);
  const real = (globalThis as any).WebSocket;
  delete (globalThis as any).WebSocket;
  try {
    assert.throws(() => connect({ url: "ws://127.0.0.1/" }), /no WebSocket/);
  } finally {
    if (real) (globalThis as any).WebSocket = real;
  }
});

test("http and https URLs are those of the socket", async () => {
  const urls: string[] = [];
  class Fake { constructor(url: string) { urls.push(url); } close() {} }
  for (const url of ["http://a.test/v1/ws", "https://a.test/v1/ws", "wss://a.test/v1/ws"]) {
    const feed = connect({ url, WebSocket: Fake, env: new Clock() });
    feed.topic("t", list);
    await until("the attempt", () => feed.connection.state === "connecting" && urls.length > 0);
    feed.close();
  }
  await until("three", () => urls.length === 3);
  assert.deepEqual(urls, ["ws://a.test/v1/ws", "wss://a.test/v1/ws", "wss://a.test/v1/ws"]);
});

test("the platform's own clock, timers and events", async () => {
  const errors: CommitcastError[] = [];
  const b = await bench({ onerror: (e) => errors.push(e) });
  const feed = connect({ url: b.server.url, WebSocket, onerror: (e) => errors.push(e) });
  const topic = feed.topic("t", list);
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  peer.cut();
  const next = await b.server.accept(); // within half a second
  next.hello();
  await next.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  feed.close();
  assert.deepEqual(errors, []);
});
