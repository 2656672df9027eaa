import assert from "node:assert/strict";
import { test } from "node:test";
import { IDBFactory } from "fake-indexeddb";
import { persist, type PersistOptions } from "../src/persist.js";
import type { CommitcastError } from "../src/index.js";
import { bench, Clock, E, event, list, shown, until } from "./harness.js";

const disk = (options: Partial<PersistOptions> = {}) => {
  const clock = new Clock();
  const errors: CommitcastError[] = [];
  const indexedDB = options.indexedDB ?? new IDBFactory();
  const store = persist({ name: "user 7", env: clock, indexedDB, onerror: (e) => errors.push(e), ...options });
  return { clock, errors, indexedDB, store };
};
const snapshot = (state: unknown, offset: number) => ({ state, cursor: `${E}:${offset}`, pending: [9], epoch: E });

test("a reload shows at once what was shown, and goes on from there without a snapshot", async () => {
  const d = disk();
  const b = await bench();
  const first = b.feed.topic<unknown[]>("t", { ...list, store: d.store });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  peer.send(event("t", 1, 1), event("t", 2, 2));
  await shown(first, "2", (v) => v.state?.length === 2);
  b.feed.close();
  await d.store.flush();
  await d.store.close();

  const again = disk({ indexedDB: d.indexedDB });
  const c = await bench({}, b.server);
  const topic = c.feed.topic<unknown[]>("t", { ...list, store: again.store, snapshot: async () => assert.fail("no snapshot is needed") });
  const view = await shown(topic, "the kept state", (v) => v.state !== undefined);
  assert.deepEqual(view.state, [1, 2]);
  assert.equal(view.status, "catching-up");
  const next = await b.server.accept();
  next.hello();
  assert.equal((await next.subscribed("t", 3)).after, `${E}:2`);
  next.send(event("t", 3, 3));
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 3);
  assert.deepEqual(c.errors, []);
  assert.deepEqual(again.errors, []);
});

test("what was kept cannot be gone on from: reset, and the snapshot", async () => {
  const d = disk();
  d.store.save("t ", snapshot(["old"], 2));
  await d.store.flush();
  const b = await bench();
  const topic = b.feed.topic<unknown[]>("t", { ...list, store: d.store });
  const peer = await b.server.accept();
  peer.hello();
  await peer.next("subscribe");
  peer.send({ op: "reset", topic: "t", epoch: E, head: 0, reason: "ahead", in_ms: 0 });
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 0);
});

test("kept pending ids of another epoch: the snapshot", async () => {
  const d = disk();
  d.store.save("t ", snapshot(["old"], 2));
  await d.store.flush();
  const b = await bench();
  const topic = b.feed.topic<unknown[]>("t", { ...list, store: d.store });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t", 2, "4-9f3c");
  await peer.unsubscribed();
  await peer.subscribed("t", 0, "4-9f3c");
  await shown(topic, "live", (v) => v.status === "live" && v.state?.length === 0);
});

test("state and token are one record of one transaction, the newest of each topic; written once for many changes", async () => {
  const d = disk();
  let transactions = 0;
  const real = d.indexedDB.open.bind(d.indexedDB);
  (d.indexedDB as any).open = (...a: [string, number]) => {
    const request = real(...a);
    request.addEventListener("success", () => {
      const db: any = request.result;
      const transaction = db.transaction.bind(db);
      db.transaction = (names: any, mode: any) => {
        if (mode === "readwrite") transactions++;
        return transaction(names, mode);
      };
    });
    return request;
  };
  for (let i = 1; i <= 100; i++) d.store.save("a ", snapshot([i], i));
  d.store.save("b ", snapshot(["b"], 1));
  d.clock.advance(499);
  assert.equal(transactions, 0);
  d.clock.advance(1);
  await d.store.flush();
  assert.equal(transactions, 1);
  assert.deepEqual(await d.store.load("a "), snapshot([100], 100));
  assert.deepEqual(await d.store.load("b "), snapshot(["b"], 1));
  assert.equal(await d.store.load("c "), undefined);
});

test("a hidden page is written at once", async () => {
  const d = disk();
  d.store.save("a ", snapshot([1], 1));
  d.clock.isHidden = true;
  d.clock.happen("visibilitychange");
  await d.store.flush();
  assert.deepEqual(await d.store.load("a "), snapshot([1], 1));
});

test("another version, an age, another user, a clear: nothing is used", async () => {
  const d = disk();
  d.store.save("a ", snapshot([1], 1));
  await d.store.flush();
  const options = { indexedDB: d.indexedDB };
  assert.ok(await disk(options).store.load("a "));
  assert.equal(await disk({ ...options, version: 2 }).store.load("a "), undefined);
  assert.equal(await disk({ ...options, name: "user 8" }).store.load("a "), undefined);
  const later = disk(options);
  later.clock.sleep(86_400_001);
  assert.equal(await later.store.load("a "), undefined);
  d.store.save("b ", snapshot([1], 1));
  await d.store.clear();
  await d.store.flush();
  assert.equal(await d.store.load("a "), undefined);
  assert.equal(await d.store.load("b "), undefined);
});

test("a disk that is broken, full, or silent is an error, and nothing else", async () => {
  const bad: [string, any][] = [
    ["throws", { open: () => { throw new Error("denied"); } }],
    ["refuses", { open: () => {
      const request: any = { error: new Error("denied") };
      queueMicrotask(() => request.onerror());
      return request;
    } }],
    ["is silent", { open: () => ({}) }],
  ];
  for (const [what, indexedDB] of bad) {
    const d = disk({ indexedDB });
    const b = await bench();
    const topic = b.feed.topic<unknown[]>("t", { ...list, store: d.store });
    const peer = await b.server.accept();
    peer.hello();
    await until("the attempt", () => (d.clock.advance(1_000), d.errors.length > 0));
    await peer.subscribed("t");
    await shown(topic, "live", (v) => v.status === "live");
    assert.match(d.errors[0].message, /what was kept could not be read/, what);
    assert.deepEqual(b.errors, []);
  }
  const d = disk();
  d.store.save("a ", snapshot(() => "a function cannot be kept", 1));
  await d.store.flush();
  assert.match(d.errors[0].message, /states could not be kept/);
});

test("what is kept is not a snapshot: reported, and read", async () => {
  const b = await bench();
  const topic = b.feed.topic<unknown[]>("t", {
    ...list, store: { load: async () => ({ state: 1 }) as any, save: () => { throw new Error("full"); } },
  });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  assert.equal(b.errors[0].kind, "store");
  assert.match(b.errors[1].message, /store.save threw: full/);
});

test("a state that was mended at the same cursor is kept, and an optimistic one is not", async () => {
  const saved: unknown[] = [];
  const b = await bench();
  let state = ["wrong"];
  const topic = b.feed.topic<unknown[]>("t", {
    ...list,
    snapshot: async () => ({ state, cursor: `${E}:1`, pending: [], epoch: E }),
    store: { load: async () => undefined, save: (_, s) => saved.push(s.state) },
  });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  topic.layer({ optimistic: true, change: (s) => [...s, "mine"], passed: () => false, replaced: () => false });
  state = ["right"];
  topic.reread("wrong");
  await peer.unsubscribed();
  await peer.subscribed("t");
  await shown(topic, "right", (v) => v.status === "live" && v.state?.[0] === "right");
  assert.deepEqual(saved, [["wrong"], ["right"]]);
});
