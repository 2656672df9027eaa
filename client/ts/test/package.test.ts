// What is delivered: its size, its shape, and the committed file.

import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { WebSocket } from "ws";
import { E, list, Server, shown } from "./harness.js";

const root = new URL("../../", import.meta.url);
const { bundle, browser } = (await import(new URL("scripts/bundle.mjs", root).href)) as {
  bundle(entry: string, options?: object): Promise<string>;
  browser(): Promise<string>;
};
const packed = async (entry: string): Promise<number> => {
  const text = await bundle(entry, { minify: true, external: ["react"] });
  return gzipSync(text, { level: 9 }).length;
};
const pkg = JSON.parse(readFileSync(new URL("package.json", root), "utf8"));

test("the core is smaller than 6.25 KB, minified and compressed; the other entries stay small", async (t) => {
  const limits: Record<string, number> = {
    index: 6.25 * 1024, act: 2.5 * 1024, digest: 1.5 * 1024, persist: 1.5 * 1024, share: 4.5 * 1024, react: 3.5 * 1024, browser: 8.5 * 1024,
  };
  for (const entry in limits) {
    const size = await packed(`src/${entry}.ts`);
    t.diagnostic(`${entry}: ${size} bytes`);
    assert.ok(size < limits[entry], `${entry} has ${size} bytes, more than ${limits[entry]}`);
    assert.ok(size > 300, `${entry} has ${size} bytes: that cannot be all`);
  }
});

test("what is not used is not there", async () => {
  assert.ok((await packed('import { CommitcastError } from "./src/index.ts"; console.log(CommitcastError);')) < 500);
  const core = await bundle('export { connect } from "./src/browser.ts";', { minify: true });
  for (const word of ["Idempotency-Key", "If-None-Match", "BroadcastChannel", "indexedDB"]) assert.ok(!core.includes(word), word);
});

test("dist/commitcast.js is what the sources give", async () => {
  const committed = readFileSync(new URL("dist/commitcast.js", root), "utf8");
  assert.ok(committed === (await browser()), "run `npm run build` and commit dist/commitcast.js");
});

test("dist/commitcast.js works as it is", async () => {
  const { connect, act, digest, ActError, CommitcastError } = await import(new URL("dist/commitcast.js", root).href);
  for (const f of [connect, act, digest, ActError, CommitcastError]) assert.equal(typeof f, "function");
  const server = await Server.start();
  const feed = connect({ url: server.url, WebSocket });
  const topic = feed.topic("t", list);
  const peer = await server.accept();
  peer.hello(E);
  await peer.subscribed("t");
  await shown(topic, "live", (v: any) => v.status === "live");
  feed.close();
});

test("no dependencies at run time, no hosts in the lock file, each export has its source", () => {
  assert.equal(pkg.dependencies, undefined);
  assert.deepEqual(Object.keys(pkg.peerDependencies), ["react"]);
  assert.equal(pkg.peerDependenciesMeta.react.optional, true);
  const lock = JSON.parse(readFileSync(new URL("package-lock.json", root), "utf8"));
  for (const [path, { resolved }] of Object.entries<any>(lock.packages)) assert.equal(resolved, undefined, path);
  for (const [name, version] of Object.entries<string>(pkg.devDependencies)) assert.match(version, /^\d+\.\d+\.\d+$/, name);
  for (const [name, target] of Object.entries<any>(pkg.exports)) {
    if (target.default) assert.ok(existsSync(new URL(target.default.replace("./lib/", "src/").replace(/js$/, "ts"), root)), name);
  }
});

test("only react.ts imports a package, and only React", () => {
  for (const file of readdirSync(new URL("src/", root))) {
    const imports = [...readFileSync(new URL(`src/${file}`, root), "utf8").matchAll(/from "([^"]+)"/g)].map((m) => m[1]!);
    const foreign = imports.filter((name) => !name.startsWith("./"));
    assert.deepEqual(foreign, file === "react.ts" ? ["react"] : [], file);
  }
});
