// What the model cannot see, because another rule heals it in the end: that the right thing is done at once.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Machine } from "../src/machine.js";
import type { EventFrame } from "../src/wire.js";

const E = "3-7d0a";
let log: string[];
let m: Machine<string>;
let id: number;

beforeEach(() => {
  log = [];
  id = 0;
  m = new Machine<string>({
    rereadSkipped: false,
    read: (n) => log.push(`read ${n}`),
    subscribe: (after) => (log.push(`subscribe ${after}`), ++id),
    unsubscribe: () => (log.push("unsubscribe"), ++id),
    wait: (_, ms, attempt) => log.push(`wait ${ms} #${attempt}`),
    apply: (state, e) => state + e.data,
    passed: (e, held) => log.push(`passed ${e.offset}${held ? " held" : ""}`),
    replaced: () => log.push("replaced"),
  });
});

const event = (offset: number, more: Partial<EventFrame> = {}): EventFrame => ({
  op: "event", topic: "t", epoch: E, offset, id: 100 + offset, type: "x", at: "", data: String.fromCharCode(96 + offset), ...more,
});
const n = (): number => Number(log.filter((l) => l.startsWith("read")).at(-1)!.slice(5));

/** Live at offset 1, with the log empty. */
function live(pending: number[] = []): void {
  m.start();
  m.up();
  m.snapshot(n(), { state: "-", cursor: { epoch: E, offset: 1 }, pending, epoch: E });
  m.subscribed(id, E, 1);
  assert.equal(m.phase, "live");
  log = [];
}

test("an event at n+1 is applied, below it is dropped", () => {
  live();
  m.event(event(2));
  m.event(event(2));
  m.event(event(1));
  m.event(event(3));
  assert.deepEqual(log, ["passed 2", "passed 3"]);
  assert.equal(m.held!.state, "-bc");
  assert.ok(Object.isFrozen(m.held));
});

test("state and token are replaced together, and never changed", () => {
  live([102]);
  const before = m.held!;
  const copy = structuredClone(before);
  m.event(event(2));
  m.event(event(3));
  assert.deepEqual(before, copy);
  assert.deepEqual(m.held, { state: "-c", cursor: { epoch: E, offset: 3 }, pending: [], epoch: E });
});

test("skip advances, and uses up a pending id", () => {
  live([102]);
  m.event({ ...event(2), skip: true });
  assert.deepEqual(m.held, { state: "-", cursor: { epoch: E, offset: 2 }, pending: [], epoch: E });
});

test("a hole: subscribe again at once, from the own cursor; what the old subscription still sends is ignored", () => {
  live();
  m.event(event(3));
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:1`]);
  m.event(event(2));
  m.reset(0);
  assert.equal(m.held!.cursor.offset, 1);
  m.unsubscribed(id - 1);
  m.subscribed(id, E, 3);
  m.event(event(2));
  m.event(event(3));
  assert.equal(m.held!.state, "-bc");
});

test("what was left out is no hole, and what belongs together is applied together, or not at all", () => {
  live([104]);
  m.event(event(3, { conflated: 1, more: true }));
  m.event(event(4, { more: true }));
  assert.deepEqual(log, []);
  assert.equal(m.held!.state, "-");
  m.event(event(7, { conflated: 2 }));
  assert.deepEqual(log, ["passed 3", "passed 4 held", "passed 7"]);
  assert.deepEqual(m.held, { state: "-cg", cursor: { epoch: E, offset: 7 }, pending: [], epoch: E });

  m.event(event(9, { conflated: 1, more: true }));
  m.event(event(8)); // the server begins again: its database went back, perhaps
  m.event(event(9));
  assert.equal(m.held!.state, "-cghi");

  log = [];
  m.event(event(12, { conflated: 2, more: true }));
  for (const offset of [13, 14]) { // it takes more than two heartbeats
    m.heartbeat(E, 20);
    m.event(event(offset, { more: true }));
  }
  m.heartbeat(E, 20);
  m.event(event(14, { conflated: 1, more: true })); // twice
  assert.deepEqual(log, []);
  m.event(event(17, { conflated: 1, more: true })); // and one is lost
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:9`]);
  m.subscribed(id, E, 14);
  m.heartbeat(E, 14);
  m.heartbeat(E, 14); // nothing of it counts any more
  assert.deepEqual(log.slice(2), ["unsubscribe", "wait 0 #2"]);
  assert.equal(m.held!.state, "-cghi");
});

test("holes without progress: growing pauses, then the snapshot", () => {
  live();
  m.event(event(3));
  m.subscribed(id, E, 3);
  m.event(event(3));
  assert.equal(log.at(-1), "wait 0 #2");
  m.due(n2());
  m.subscribed(id, E, 3);
  m.event(event(3));
  assert.equal(log.at(-1), "wait 0 #3");
  m.due(n2());
  assert.match(log.at(-1)!, /^read/);
});
/** The number of the wait under way: the one after the last read or wait. */
const n2 = (): number => {
  for (let i = 0; i < 100; i++) {
    const probe = m.phase;
    m.due(i);
    if (m.phase !== probe) return -1; // it was due, and is done
  }
  throw new Error("nothing waits");
};

test("progress between two heartbeats makes the next healing the first again", () => {
  live();
  m.event(event(3));
  m.subscribed(id, E, 3);
  m.event(event(2));
  m.heartbeat(E, 3);
  m.event(event(3));
  m.heartbeat(E, 4);
  log = [];
  m.event(event(5));
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:3`]);
});

test("reset: nothing before in_ms, then the snapshot, and no unsubscribe", () => {
  live();
  m.reset(340);
  assert.deepEqual(log, ["wait 340 #1"]);
  m.event(event(2));
  assert.equal(m.held!.cursor.offset, 1);
  n2();
  assert.match(log.at(-1)!, /^read/);
});

test("a reset that answers subscribe, without subscribed", () => {
  m.start();
  m.up();
  m.snapshot(n(), { state: "-", cursor: { epoch: E, offset: 1 }, pending: [], epoch: E });
  m.reset(0);
  assert.match(log.at(-1)!, /^read/);
});

test("a head that stays ahead over two heartbeats", () => {
  live();
  m.heartbeat(E, 2);
  assert.equal(m.current, false);
  assert.deepEqual(log, []);
  m.heartbeat(E, 3);
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:1`]);
});

test("a head that is ahead while events arrive is nothing", () => {
  live();
  m.heartbeat(E, 3);
  m.event(event(2));
  m.heartbeat(E, 4);
  m.event(event(3));
  m.heartbeat(E, 3);
  assert.deepEqual(log, ["passed 2", "passed 3"]);
  assert.equal(m.current, true);
});

test("two heartbeats that do not name the topic: the server has lost the subscription", () => {
  live();
  m.heartbeat(E, undefined);
  m.heartbeat(E, undefined);
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:1`]);
});

test("two heartbeats without an answer to subscribe", () => {
  m.start();
  m.up();
  m.snapshot(n(), { state: "-", cursor: { epoch: E, offset: 1 }, pending: [], epoch: E });
  log = [];
  m.heartbeat(E, undefined);
  m.heartbeat(E, undefined);
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:1`]);
});

test("another epoch: the snapshot is read again if ids are pending, and not otherwise", () => {
  for (const [what, act] of Object.entries({
    event: () => m.event(event(2, { epoch: "4-9f3c" })),
    heartbeat: () => m.heartbeat("4-9f3c", 1),
  })) {
    live([555]);
    act();
    assert.deepEqual(log.map((l) => l.split(" ")[0]), ["unsubscribe", "read"], what);
    assert.equal(m.held!.cursor.offset, 1);
    m.close();
    m = new Machine<string>({
      rereadSkipped: false,
      read: (n) => log.push(`read ${n}`), subscribe: () => ++id, unsubscribe: () => (log.push("unsubscribe"), ++id),
      wait: () => log.push("wait"), apply: (s, e) => s + e.data, passed: () => {}, replaced: () => {},
    });
    live();
    act();
    assert.deepEqual(log, [], what);
    m.close();
  }
});

test("another epoch in subscribed, with pending ids", () => {
  m.start();
  m.up();
  m.snapshot(n(), { state: "-", cursor: { epoch: E, offset: 1 }, pending: [7], epoch: E });
  m.subscribed(id, "4-9f3c", 1);
  assert.match(log.at(-1)!, /^read/);
});

test("the cursor follows the event's epoch, and never to an older one", () => {
  live();
  m.event(event(2, { epoch: "4-9f3c" }));
  assert.deepEqual(m.held!.cursor, { epoch: "4-9f3c", offset: 2 });
  m.event(event(3));
  assert.equal(m.held!.cursor.offset, 2);
  assert.equal(log.at(-1), "subscribe 4-9f3c:2");
});

test("refusals: unavailable waits, bad_cursor reads, already_subscribed starts over, others are final", () => {
  const expected: Record<string, RegExp> = {
    unavailable: /^wait 0 #2/, bad_cursor: /^read/, already_subscribed: /^subscribe/, forbidden: /^$/, bad_topic: /^$/, too_many: /^$/,
  };
  for (const code in expected) {
    const own = new Machine<string>({
      rereadSkipped: false, read: (n) => log.push(`read ${n}`), subscribe: () => (log.push("subscribe"), ++id),
      unsubscribe: () => ++id, wait: (_, ms, a) => log.push(`wait ${ms} #${a}`), apply: (s) => s, passed() {}, replaced() {},
    });
    own.start({ state: "-", cursor: { epoch: E, offset: 1 }, pending: [], epoch: E });
    own.up();
    log = [];
    const final = own.refused(id, code);
    assert.match(log.at(-1) ?? "", expected[code]!, code);
    assert.equal(final, own.phase === "failed", code);
    if (final) {
      own.down();
      own.up();
      assert.equal(own.phase, "asked", `${code}: the next connection tries again`);
    }
  }
});

test("an answer to an earlier read is void; so is one after close", () => {
  m.start();
  const first = n();
  m.unread(first);
  m.retry();
  assert.notEqual(n(), first);
  const held = { state: "-", cursor: { epoch: E, offset: 1 }, pending: [], epoch: E };
  m.snapshot(first, held);
  assert.equal(m.held === undefined, true);
  m.snapshot(n(), held);
  m.close();
  m.snapshot(n(), { ...held, state: "late" });
  m.reread();
  m.up();
  assert.equal(m.phase, "closed");
  assert.equal(m.held!.state, "-");
});

test("a probe subscribes again, once", () => {
  assert.equal(m.probe(), false);
  live();
  assert.equal(m.probe(), true);
  assert.deepEqual(log, ["unsubscribe", `subscribe ${E}:1`]);
  assert.equal(m.probe(), false);
});
