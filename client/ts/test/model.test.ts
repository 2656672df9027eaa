import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { Machine } from "../src/machine.js";
import { Sim, type MachineConstructor } from "./model.js";

const SEEDS = Number(process.env["SEEDS"] ?? 40_000);

test(`${SEEDS} random schedules leave no page wrong`, () => {
  const faults: Record<string, number> = {};
  for (let seed = 1; seed <= SEEDS; seed++) {
    const sim = new Sim(seed, Machine);
    assert.equal(sim.run(), "", `seed ${seed}`);
    for (const name in sim.faults) faults[name] = (faults[name] ?? 0) + sim.faults[name];
  }
  for (const name of [
    "connection cut", "database goes back", "page reloads", "subscription lost", "reread", "probe", "unavailable",
    "frame lost", "frame twice", "stale snapshot", "slow snapshot", "snapshot fails", "apply throws",
  ]) {
    assert.ok((faults[name] ?? 0) > SEEDS / 100, `the fault "${name}" hardly happened: ${faults[name]}`);
  }
});

// Each rule of the machine, and what becomes of it when it is taken out. The text must occur exactly once.
const MUTATIONS: { name: string; wrong: RegExp; edits: [from: string, to: string][] }[] = [
  {
    name: "pending ignored", wrong: /wrong state/,
    edits: [["if (pending.includes(e.id))", "if (false)"]],
  },
  {
    name: "≤ n not dropped", wrong: /wrong state/,
    edits: [
      ["if (f.offset <= reached.offset)", "if (false)"],
      ["if (after !== reached.offset ||", "if (after > reached.offset ||"],
    ],
  },
  {
    name: "hole applied", wrong: /wrong state/,
    edits: [["if (after !== reached.offset ||", "if ("]],
  },
  {
    name: "epoch ignored: pending ids outlive it", wrong: /wrong state/,
    edits: [["if (pending.length === 0 || epoch === own)", "if (true)"]],
  },
  {
    name: "epoch ignored: the cursor does not follow the event's", wrong: /wrong state/,
    edits: [["cursor: { epoch: f.epoch,", "cursor: { epoch: held.cursor.epoch,"]],
  },
  {
    name: "token and state moved apart: the cursor passes an event that apply refused", wrong: /wrong state/,
    edits: [["catch {\n            return this.#again(\"read\");", "catch {\n            "]],
  },
  {
    name: "token and state moved apart: a snapshot's state with the old cursor", wrong: /wrong state/,
    edits: [["this.held = Object.freeze(held);", "this.held = Object.freeze({ ...held, cursor: this.held?.cursor ?? held.cursor });"]],
  },
  {
    name: "token and state moved apart: a snapshot's state with the old pending ids", wrong: /wrong state/,
    edits: [["this.held = Object.freeze(held);", "this.held = Object.freeze({ ...held, pending: this.held?.pending ?? held.pending });"]],
  },
  {
    name: "skip does not advance", wrong: /without a fault/,
    edits: [["else if (this.#ports.rereadSkipped)", "else return; if (false)"]],
  },
  {
    name: "what belongs together is applied one by one", wrong: /wrong state/,
    edits: [["if (f.more)", "if (false)"]],
  },
  {
    name: "what was left out is a hole", wrong: /without a fault|not current/,
    edits: [["f.offset - 1 - (f.conflated ?? 0)", "f.offset - 1"]],
  },
  {
    name: "every heartbeat heals", wrong: /without a fault/,
    edits: [["if (this.#stuck === offset)", "if (true)"]],
  },
  {
    name: "heartbeat ignored", wrong: /not current/,
    edits: [["this.#again(\"subscribe\"); // two heartbeats", "// two heartbeats"]],
  },
  {
    name: "no subscription after a reconnect", wrong: /not current/,
    edits: [["if (this.phase === \"failed\")\n            this.phase = \"idle\";\n        this.#subscribe();", ""]],
  },
];

for (const { name, wrong, edits } of MUTATIONS) {
  test(`the mutation "${name}" is caught`, async () => {
    const source = new URL("../src/machine.js", import.meta.url);
    let text = await readFile(source, "utf8");
    for (const [from, to] of edits) {
      assert.equal(text.split(from).length, 2, `once in machine.js: ${from}`);
      text = text.replace(from, () => to);
    }
    const mutant = new URL(`../src/mutant-${MUTATIONS.findIndex((m) => m.name === name)}.js`, import.meta.url);
    await writeFile(mutant, text);
    const { Machine: Mutant } = (await import(mutant.href)) as { Machine: MachineConstructor };
    for (let seed = 1; seed <= SEEDS; seed++) {
      let found: string;
      try {
        found = new Sim(seed, Mutant).run();
      } catch (thrown) {
        found = String(thrown); // such as a stack that overflows
      }
      if (wrong.test(found)) return;
    }
    assert.fail(`${SEEDS} schedules found nothing wrong`);
  });
}
