// The golden vectors that every implementation of the protocol runs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { auth, epochOf, formatCursor, isEpoch, isTopic, lines, parse, parseCursor, request } from "../src/wire.js";

const vectors = (name: string): any =>
  JSON.parse(readFileSync(new URL(`../../../../wire/testdata/${name}.json`, import.meta.url), "utf8"));

test("frames from the server", () => {
  const v = vectors("server");
  assert.ok(v.frames.length > 20 && v.tolerated.length > 0 && v.bad.length > 10 && v.data.length > 5);
  for (const { name, line, frame } of v.frames) assert.deepEqual(parse(line), frame, name);
  for (const { name, line, frame } of v.tolerated) {
    const read: any = parse(line);
    for (const field in frame) assert.deepEqual(read[field], frame[field], name);
  }
  for (const { name, line, data } of v.data) assert.deepEqual((parse(line) as any).data, JSON.parse(data), name);
  for (const line of v.bad) assert.throws(() => parse(line), SyntaxError, line);
});

test("frames that this client refuses as well: a field is missing, or cannot be", () => {
  const v = vectors("server");
  for (const { frame } of v.frames) {
    const optional = ["op", "protocol", "node", "session", "key", "headers", "type", "at", "data", "skip", "conflated", "more"];
    for (const field in frame) {
      if (optional.includes(field)) continue;
      for (const value of [undefined, null, {}, -1, 1.5, 2 ** 53, true, "\n"]) {
        if (field === "message" || field === "reason" || field === "code") continue;
        if (field === "epochs" && typeof (value ?? {}) === "object") continue;
        if (field === "heads" && typeof value === "object" && value) continue;
        const line = JSON.stringify({ ...frame, [field]: value });
        assert.throws(() => parse(line), SyntaxError, line);
      }
    }
  }
  for (const field of ["type", "at", "data"]) {
    const line = JSON.stringify({ op: "event", topic: "t", epoch: "3-7d0a", offset: 1, id: 1, type: "x", at: "", data: 1, [field]: undefined });
    assert.throws(() => parse(line), SyntaxError, line);
  }
});

test("an op of a later server is no error", () => {
  assert.equal(parse('{"op":"later"}'), undefined);
  assert.equal(parse('{"op":"constructor"}'), undefined);
});

test("a topic may be called like a property of every object", () => {
  const f: any = parse('{"op":"heartbeat","epoch":"3-7d0a","heads":{"constructor":7,"toString":8}}');
  assert.equal(f.heads["constructor"], 7);
  f.epochs = { toString: "1-9f3c" };
  assert.equal(epochOf(f, "constructor"), "3-7d0a");
  assert.equal(epochOf(f, "toString"), "1-9f3c");
});

test("frames from the client", () => {
  const { frames } = vectors("client");
  assert.ok(frames.length > 3);
  for (const { name, line, request: r } of frames) {
    const written = r.op === "auth" ? auth(r.token) : request(r.op, r.id, r.topic, r.after, r.conflate);
    assert.equal(written, line, name);
  }
});

test("cursors, epochs and topics", () => {
  const v = vectors("names");
  assert.ok(v.cursors.length > 0 && v.bad_cursors.length > 10 && v.topics.length > 3 && v.bad_topics.length > 5);
  for (const { text, epoch, offset } of v.cursors) {
    assert.deepEqual(parseCursor(text), { epoch, offset });
    assert.equal(formatCursor({ epoch, offset }), text);
    assert.equal(isEpoch(epoch), true);
  }
  for (const text of v.bad_cursors) assert.equal(parseCursor(text), undefined, text);
  for (const value of [undefined, null, 7, {}, ["3-7d0a:1"]]) assert.equal(parseCursor(value), undefined);
  for (const name of v.topics) assert.equal(isTopic(name), true, name);
  for (const name of v.bad_topics) assert.equal(isTopic(name), false, name);
});

test("how messages split", () => {
  const { messages } = vectors("messages");
  assert.ok(messages.length > 5);
  for (const { name, message, lines: want } of messages) {
    assert.deepEqual(lines(message).map((line) => line.trim()), want, name);
  }
});
