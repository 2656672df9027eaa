import assert from "node:assert/strict";
import { test } from "node:test";
import { createElement, StrictMode } from "react";
import { act as settle, create, type ReactTestRenderer } from "react-test-renderer";
import { useAct, useTopic, type TopicView } from "../src/react.js";
import { bench, E, event, list, until } from "./harness.js";

(globalThis as any).IS_REACT_ACT_ENVIRONMENT = true;
const error = console.error;
console.error = (...a: unknown[]) => String(a[0]).includes("react-test-renderer is deprecated") || error(...a);

const settled = async (what: string, condition: () => boolean): Promise<void> =>
  until(what, () => {
    settle(() => {});
    return condition();
  });

for (const strict of [false, true]) {
  test(`useTopic${strict ? " in StrictMode" : ""}: loading, live, updates, one subscription for two components`, async () => {
    const b = await bench();
    let reads = 0;
    const views: TopicView<unknown[]>[] = [];
    const Screen = ({ factor }: { factor: number }) => {
      const view = useTopic<unknown[], number>(b.feed, "t", {
        snapshot: async () => (reads++, list.snapshot()),
        apply: (state, e) => [...state, e.data * factor], // inline, and it closes over a property
      });
      views.push(view);
      return createElement("p", null, `${view.status} ${view.state ?? ""}`);
    };
    const app = (factor: number) => {
      const two = [createElement(Screen, { key: 1, factor }), createElement(Screen, { key: 2, factor })];
      return strict ? createElement(StrictMode, null, two) : createElement("div", null, two);
    };
    let root!: ReactTestRenderer;
    const text = (): string => root.root.findAllByType("p").map((p) => p.children.join("")).join(" | ");
    settle(() => { root = create(app(1)); });
    assert.equal(text(), "loading  | loading ");
    const peer = await b.server.accept();
    peer.hello();
    await peer.subscribed("t");
    await settled("live", () => text() === "live  | live ");
    peer.send(event("t", 1, 1));
    await settled("1", () => text() === "live 1 | live 1");
    assert.ok(views.at(-1)!.topic);
    settle(() => root.update(app(10)));
    peer.send(event("t", 2, 2));
    await settled("20", () => text() === "live 1,20 | live 1,20");
    const before = views.length;
    settle(() => root.update(app(10)));
    assert.equal(views.at(-1), views[before - 1]); // nothing has changed: the same object
    assert.equal(reads, 1);
    assert.equal(peer.waiting, 0);
    settle(() => root.unmount());
    await peer.unsubscribed(); // a second later
    assert.deepEqual(b.errors, []);
  });
}

test("useTopic follows its name", async () => {
  const b = await bench();
  const Screen = ({ name }: { name: string }) => {
    const { status, state } = useTopic<unknown[]>(b.feed, name, {
      ...list, snapshot: async () => ({ state: [name], cursor: `${E}:0`, pending: [], epoch: E }),
    });
    return createElement("p", null, `${status} ${state}`);
  };
  let root!: ReactTestRenderer;
  const text = (): string => root.root.findByType("p").children.join("");
  settle(() => { root = create(createElement(Screen, { name: "a" })); });
  const peer = await b.server.accept();
  peer.hello();
  await peer.subscribed("a");
  await settled("a", () => text() === "live a");
  settle(() => root.update(createElement(Screen, { name: "b" })));
  await peer.subscribed("b");
  await settled("b", () => text() === "live b");
  await peer.unsubscribed();
  settle(() => root.unmount());
});

test("useAct: pending, result, stale, error; the answer to an earlier action does not win", async () => {
  const b = await bench();
  const answers: ((status: number, body: string) => void)[] = [];
  b.server.handlers.set("/buy", (_, response) => answers.push((status, body) => response.writeHead(status).end(body)));
  let run!: (request: { url: string }) => Promise<any>;
  const shown: string[] = [];
  const Screen = () => {
    const [buy, { pending, result, error }] = useAct<{ n: number }, { n: number }>();
    run = buy;
    const text = pending ? "pending" : error ? `error ${(error as Error).message}` : !result ? "idle" : result.stale ? `stale ${result.fresh.n}` : `done ${result.data.n}`;
    shown.push(text);
    return createElement("p", null, text);
  };
  let root!: ReactTestRenderer;
  settle(() => { root = create(createElement(Screen)); });
  const url = `${b.server.http}/buy`;
  for (const [status, body, want] of [[200, '{"n":1}', "done 1"], [409, '{"n":2}', "stale 2"], [400, "{}", "error "]] as const) {
    const n = answers.length;
    settle(() => void run({ url }));
    assert.equal(shown.at(-1), "pending");
    await until("the request", () => answers.length > n);
    answers.at(-1)!(status, body);
    await settled(want, () => shown.at(-1)!.startsWith(want));
  }
  const n = answers.length;
  let first!: Promise<any>;
  settle(() => { first = run({ url }); });
  await until("the first", () => answers.length === n + 1);
  settle(() => void run({ url }));
  await until("the second", () => answers.length === n + 2);
  answers[n + 1](200, '{"n":22}');
  await settled("the second", () => shown.at(-1) === "done 22");
  answers[n](200, '{"n":11}');
  assert.equal((await first).data.n, 11);
  settle(() => {});
  assert.equal(shown.at(-1), "done 22");
  settle(() => root.unmount());
});
