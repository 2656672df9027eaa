import assert from "node:assert/strict";
import { test } from "node:test";
import { digest } from "../src/digest.js";
import { bench, E, event, live, shown, until, type Bench } from "./harness.js";

interface Database {
  url: string;
  cursor: string;
  etag: string;
  digest?: string;
  asked: (string | undefined)[];
  status: number[];
  answered: number;
  /** Brings whole answers: what is done with one is done when the event loop turns. */
  fetch: typeof fetch;
}

/** An endpoint of a database whose digest is told. */
function database(b: Bench): Database {
  const d: Database = {
    url: `${b.server.http}/digest`, cursor: `${E}:0`, etag: '"0"', asked: [], status: [], answered: 0,
    fetch: async (...request) => {
      const { status, headers, ...response } = await fetch(...request).then(async (r) => ({ status: r.status, headers: r.headers, text: await r.text() }));
      d.answered++;
      return new Response(status === 304 ? null : response.text, { status, headers });
    },
  };
  b.server.handlers.set("/digest", (request, response) => {
    const match = request.headers["if-none-match"];
    d.asked.push(match);
    const status = match === d.etag ? 304 : 200;
    if (status === 304) response.writeHead(304).end();
    else response.writeHead(200, { ETag: d.etag }).end(JSON.stringify({ cursor: d.cursor, digest: d.digest }));
    d.status.push(status);
  });
  return d;
}

/** Lets one poll happen, to its end. */
async function poll(b: Bench, d: Database, ms: number): Promise<void> {
  const { answered } = d;
  b.clock.advance(ms);
  await until("the answer", () => d.answered > answered);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(d.answered, answered + 1);
}

test("unchanged: 304, again and again, and nothing happens", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const d = database(b);
  const stop = digest(topic, { url: d.url, fetch: d.fetch, env: b.clock, every: 5_000 });
  for (let i = 0; i < 3; i++) await poll(b, d, 5_000);
  stop();
  assert.deepEqual(d.status, [200, 304, 304]);
  assert.deepEqual(d.asked, [undefined, '"0"', '"0"']);
  assert.deepEqual(b.errors, []);
  assert.equal(peer.waiting, 0);
});

test("data that changed without an event: believed the second time, reported once, and read again", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const d = database(b);
  const found: string[] = [];
  digest(topic, { url: d.url, fetch: d.fetch, env: b.clock, every: 5_000, ondiverge: (what) => found.push(`${what.topic} ${what.cursor} ${what.reason}`) });
  await poll(b, d, 5_000);
  d.etag = '"1"';
  await poll(b, d, 5_000);
  assert.deepEqual(found, []);
  await poll(b, d, 3_000); // it is confirmed soon
  assert.deepEqual(found, [`t ${E}:0 the data changed without an event`]);
  assert.deepEqual(b.errors.map((e) => e.kind), ["diverged"]);
  await peer.unsubscribed();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  await poll(b, d, 5_000);
  assert.equal(found.length, 1);
});

test("a commit that is on its way is no divergence", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const d = database(b);
  digest(topic, { url: d.url, fetch: d.fetch, env: b.clock, every: 5_000 });
  await poll(b, d, 5_000);
  d.etag = '"1"'; // committed, not sequenced
  await poll(b, d, 5_000);
  d.cursor = `${E}:1`;
  d.etag = '"1 1"';
  peer.send(event("t", 1, 1));
  await shown(topic, "1", (v) => v.cursor === `${E}:1`);
  await poll(b, d, 3_000);
  assert.deepEqual(b.errors, []);
});

test("a state that is not what the database says, at the same head", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const d = database(b);
  d.digest = "1 row";
  const stop = digest(topic, { url: d.url, fetch: d.fetch, env: b.clock, every: 5_000, of: (state) => `${state.length} row` });
  await poll(b, d, 5_000);
  await poll(b, d, 3_000);
  assert.match(b.errors[0].message, /the state differs from the database/);
  await peer.unsubscribed();
  await peer.subscribed("t");
  await shown(topic, "live", (v) => v.status === "live");
  await poll(b, d, 5_000); // reading did not help: not again, and again
  await poll(b, d, 3_000);
  assert.equal(b.errors.length, 1);
  stop();
});

test("a database that is ahead while nothing comes", async () => {
  const b = await bench();
  const { topic, peer } = await live(b);
  const d = database(b);
  d.cursor = `${E}:3`;
  digest(topic, { url: d.url, fetch: d.fetch, env: b.clock, every: 5_000 });
  await poll(b, d, 5_000);
  await poll(b, d, 3_000);
  assert.match(b.errors[0].message, /ahead/);
  await peer.unsubscribed();
  await peer.next("subscribe");
});

test("hidden tabs do not ask; a look at one does, soon", async () => {
  const b = await bench();
  const { topic } = await live(b);
  const d = database(b);
  const stop = digest(topic, { url: d.url, fetch: d.fetch, env: b.clock, every: 20_000 });
  b.clock.isHidden = true;
  b.clock.advance(21_000);
  assert.equal(d.asked.length, 0);
  b.clock.isHidden = false;
  b.clock.happen("visibilitychange");
  await poll(b, d, 1_000);
  stop();
  assert.equal(d.asked.length, 1);
});

test("an endpoint that is broken, or no digest, is nobody's error; stop stops", async () => {
  const b = await bench();
  const { topic } = await live(b);
  let asked = 0;
  b.server.handlers.set("/digest", (_, response) => {
    asked++;
    if (asked === 1) response.destroy();
    else if (asked === 2) response.writeHead(500).end();
    else if (asked === 3) response.end("<html>");
    else response.writeHead(200, { ETag: '"1"' }).end("{}");
  });
  const before = b.clock.timers;
  const stop = digest(topic, { url: `${b.server.http}/digest`, env: b.clock, every: 1_000 });
  for (let i = 1; i <= 5; i++) await until(`poll ${i}`, () => (b.clock.timers > before && b.clock.advance(100), asked >= i));
  stop();
  b.clock.advance(5_000);
  assert.equal(asked, 5);
  assert.deepEqual(b.errors, []);
});
