import assert from "node:assert/strict";
import { test } from "node:test";
import { act, ActError } from "../src/act.js";
import { bench, Clock, E, event, live, shown, until, type Bench } from "./harness.js";

interface Seen {
  method: string;
  saw: string | undefined;
  key: string;
  body: any;
}

/** An endpoint that answers as it is told, once for each attempt. */
function endpoint(b: Bench, ...answers: ((response: any, request: any) => void)[]): { url: string; seen: Seen[] } {
  const seen: Seen[] = [];
  b.server.handlers.set("/buy", (request, response, body) => {
    seen.push({
      method: request.method!,
      saw: request.headers["commitcast-saw"] as string | undefined,
      key: request.headers["idempotency-key"] as string,
      body: body && JSON.parse(body),
    });
    answers[Math.min(seen.length, answers.length) - 1](response, request);
  });
  return { url: `${b.server.http}/buy`, seen };
}

const done = (id?: number) => (response: any): void => {
  response.writeHead(200, id === undefined ? {} : { "Commitcast-Event": String(id) }).end('{"ok":true}');
};
const broken = (response: any): void => response.destroy();
const add = (what: string) => (state: unknown[]): unknown[] => [...state, what];

test("an action carries what its author saw, and a key", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  peer.send(event("t", 1, 1));
  await shown(topic, "1", (v) => v.state?.length === 1);
  const { url, seen } = endpoint(b, done());
  const result = await act<{ ok: boolean }>({ url, json: { shares: 3 } }, { topic });
  assert.equal(result.stale, false);
  assert.deepEqual(result.stale || result.data, { ok: true });
  assert.equal(seen[0].saw, `${E}:1`);
  assert.equal(seen[0].method, "POST");
  assert.deepEqual(seen[0].body, { shares: 3 });
  assert.match(seen[0].key, /^[0-9a-f]{32}$/);
  await act({ url, method: "PUT" }, { topic, saw: 17, key: "mine" });
  assert.deepEqual([seen[1].saw, seen[1].key, seen[1].method], [`${E}:1;17`, "mine", "PUT"]);
  await act({ url });
  assert.equal(seen[2].saw, undefined);
  assert.notEqual(seen[2].key, seen[0].key);
});

test("optimistic: shown at once, replaced by the event, with nothing in between", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const states: string[] = [];
  topic.subscribe((v) => states.push(`${v.state}${v.optimistic ? "?" : ""}`));
  const { url } = endpoint(b, done(1001));
  const result = await act({ url }, { topic, optimistic: add("mine") });
  assert.deepEqual(topic.view.state, ["mine"]);
  assert.equal(topic.view.cursor, `${E}:0`);
  peer.send(event("t", 1, "mine"));
  assert.equal(await (result as any).shown, true);
  await shown(topic, "the event", (v) => !v.optimistic);
  assert.deepEqual(states, ["mine?", "mine"]);
});

test("an event that is faster than the answer", async () => {
  for (const headers of [undefined, { "idempotency-key": "k" }]) {
    const b = await bench();
    const { topic, peer } = await live(b);
    let answer!: () => void;
    const { url, seen } = endpoint(b, (response) => (answer = () => done(1001)(response)));
    const acting = act({ url }, { topic, optimistic: add("mine"), key: "k" });
    await until("the request", () => seen.length === 1);
    peer.send(event("t", 1, "mine", headers && { headers }));
    await shown(topic, "the event", (v) => v.cursor === `${E}:1`);
    // By the header it is recognised at once; by its id only when the answer brings it.
    assert.deepEqual(topic.view.state, headers ? ["mine"] : ["mine", "mine"]);
    answer();
    assert.equal(await ((await acting) as any).shown, true);
    assert.deepEqual(topic.view.state, ["mine"]);
    assert.equal(topic.view.optimistic, false);
  }
});

test("an optimistic change stays on top of what others do meanwhile", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const { url } = endpoint(b, done(1002));
  const result: any = await act({ url }, { topic, optimistic: add("mine") });
  peer.send(event("t", 1, "theirs"));
  await shown(topic, "theirs", (v) => v.cursor === `${E}:1`);
  assert.deepEqual(topic.view.state, ["theirs", "mine"]);
  peer.send(event("t", 2, "mine"));
  assert.equal(await result.shown, true);
  assert.deepEqual(topic.view.state, ["theirs", "mine"]);
});

test("409: resolves with the fresh state, and the change is taken back", async () => {
  const b = await bench();
  const { topic } = await live(b);
  const { url } = endpoint(b, (r) => r.writeHead(409).end('{"price":7}'));
  const acting = act<unknown, { price: number }>({ url }, { topic, optimistic: add("mine") });
  assert.deepEqual(topic.view.state, ["mine"]);
  const result = await acting;
  assert.equal(result.stale, true);
  assert.deepEqual(result.stale && result.fresh, { price: 7 });
  assert.deepEqual(topic.view.state, []);
  assert.equal(topic.view.optimistic, false);
});

test("another refusal: rejects once, and the change is taken back", async () => {
  const b = await bench();
  const { topic } = await live(b);
  const { url, seen } = endpoint(b, (r) => r.writeHead(422).end('{"why":"no funds"}'));
  await assert.rejects(act({ url }, { topic, optimistic: add("mine") }), (e: ActError) => {
    assert.equal(e.status, 422);
    assert.deepEqual(e.body, { why: "no funds" });
    assert.equal(e.unknown, false);
    return true;
  });
  assert.equal(seen.length, 1);
  assert.deepEqual(topic.view.state, []);
});

test("a lost answer is asked for again, with the same key and the same sight", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const { url, seen } = endpoint(b, broken, (r) => r.writeHead(503, { "Retry-After": "2" }).end(), (r) => {
    r.writeHead(200, { "Content-Length": "100" }).write('{"half'); // it breaks off
    r.destroy();
  }, done(1001));
  const acting = act({ url, json: 1 }, { topic, env: b.clock, optimistic: add("mine") });
  peer.send(event("t", 1, "mine"));
  await shown(topic, "the event", (v) => v.cursor === `${E}:1`);
  for (let i = 1; i < 4; i++) {
    await until(`attempt ${i}`, () => seen.length === i && b.clock.timers > 1);
    await until("the next", () => {
      b.clock.advance(500);
      return seen.length > i;
    });
  }
  const result: any = await acting;
  assert.equal(result.stale, false);
  assert.equal(await result.shown, true);
  assert.equal(new Set(seen.map((s) => s.key)).size, 1);
  assert.deepEqual(new Set(seen.map((s) => s.saw)), new Set([`${E}:0`]));
  assert.deepEqual(topic.view.state, ["mine"]);
});

test("no answer at all: unknown, with the key to ask again", async () => {
  const b = await bench();
  const { topic } = await live(b);
  const { url, seen } = endpoint(b, broken);
  const acting = act({ url }, { topic, attempts: 2, env: b.clock, optimistic: add("mine") });
  const failed = assert.rejects(acting, (e: ActError) => {
    assert.equal(e.unknown, true);
    assert.equal(e.status, 0);
    assert.equal(e.key, seen[0].key);
    return true;
  });
  await until("the second", () => {
    b.clock.advance(300);
    return seen.length === 2;
  });
  await failed;
  assert.deepEqual(topic.view.state, []);
});

test("a signal ends it, before, while and between", async () => {
  const b = await bench();
  const { topic } = await live(b);
  const { url, seen } = endpoint(b, broken, () => {});
  await assert.rejects(act({ url }, { signal: AbortSignal.abort(new Error("enough")) }), /enough/);
  assert.equal(seen.length, 0);
  const between = new AbortController();
  const first = act({ url }, { topic, env: new Clock(), signal: between.signal, optimistic: add("mine") });
  const firstFails = assert.rejects(first, /enough/);
  await until("the attempt", () => seen.length === 1);
  between.abort(new Error("enough"));
  await firstFails;
  const during = new AbortController();
  const second = act({ url }, { topic, signal: during.signal, optimistic: add("mine") });
  const secondFails = assert.rejects(second, /enough/);
  await until("the attempt", () => seen.length === 2);
  during.abort(new Error("enough"));
  await secondFails;
  assert.deepEqual(topic.view.state, []);
});

test("a snapshot that may hold the event already: the change is not shown twice", async () => {
  const b = await bench();
  let state: unknown[] = [];
  let cursor = 0;
  const topic = b.feed.topic<unknown[]>("t", {
    snapshot: async () => ({ state, cursor: `${E}:${cursor}`, pending: [], epoch: E }),
    apply: (s, e) => [...s, e.data],
  });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  for (const before of [true, false]) {
    let answer!: () => void;
    let asked = false;
    const { url } = endpoint(b, (response) => {
      answer = () => done(5555)(response);
      asked = true;
    });
    const acting = act({ url }, { topic, optimistic: add("mine") });
    await until("the request", () => asked);
    if (!before) answer();
    const result: any = before ? undefined : await acting;
    state = [...state, "mine"];
    cursor++;
    topic.reread();
    await peer.unsubscribed();
    await peer.subscribed("t", cursor);
    peer.send({ op: "heartbeat", epoch: E, heads: { t: cursor } });
    await shown(topic, "live", (v) => v.status === "live");
    if (before) {
      answer();
      assert.equal(await ((await acting) as any).shown, false);
    } else assert.equal(await result.shown, false);
    assert.deepEqual(topic.view.state, state);
    assert.equal(topic.view.optimistic, false);
  }
});

test("an event that never comes: the change goes after 10 s", async () => {
  const b = await bench();
  const { topic } = await live(b);
  const { url } = endpoint(b, done(9));
  const result: any = await act({ url }, { topic, env: b.clock, optimistic: add("mine") });
  b.clock.advance(9_999);
  assert.equal(topic.view.optimistic, true);
  b.clock.advance(1);
  assert.equal(await result.shown, false);
  assert.deepEqual(topic.view.state, []);
});

test("ids of events can come from anywhere; without them the change goes with the answer", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const { url } = endpoint(b, (r) => r.end('{"events":[1001,1002]}'));
  const result: any = await act<{ events: number[] }>({ url }, { topic, optimistic: add("mine"), events: (body) => body.events });
  peer.send(event("t", 1, "a"));
  await shown(topic, "a", (v) => v.cursor === `${E}:1`);
  assert.equal(topic.view.optimistic, true);
  peer.send(event("t", 2, "b"));
  assert.equal(await result.shown, true);
  assert.deepEqual(topic.view.state, ["a", "b"]);
  const none: any = await act({ url }, { topic, optimistic: add("mine") });
  assert.equal(await none.shown, false);
  assert.equal(topic.view.optimistic, false);
});

test("an optimistic change that throws is reported once, and goes", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const { url } = endpoint(b, done(1001));
  await act({ url }, { topic, env: b.clock, optimistic: () => { throw new Error("oops"); } });
  peer.send(event("t", 1, "mine"), event("t", 2, "more"));
  await shown(topic, "both", (v) => v.state?.length === 2);
  assert.deepEqual(b.errors.map((e) => e.kind), ["callback"]);
  assert.equal(topic.view.optimistic, false);
});
