// The page of torture_test.go: two topics followed, actions, and a record of everything that a state was made of.

import { connect, act } from "/commitcast.js";
import { persist, share } from "/more.js";

const asked = Object.fromEntries(new URLSearchParams(location.search));
let chance = Number(asked.seed) || 1;
const random = (n) => (chance = (chance * 48271) % 2147483647) % n;
const counts = {
  dials: 0, tokens: 0, expired: 0, losses: 0, applied: 0, snapshots: 0, held: 0, resets: 0, subscribes: 0, messages: 0, lost: 0, twice: 0, swapped: 0,
  restored: 0, "restored with held": 0, acts: 0, done: 0, paid: 0, repeated: 0, shown: 0, unshown: 0, stale: 0, unknown: 0,
};
const troubles = []; // what must not happen
const errors = {}; // what may: how often, by kind
addEventListener("error", (e) => troubles.push(`error: ${e.message}`));
addEventListener("unhandledrejection", (e) => troubles.push(`unhandled: ${e.reason?.stack ?? e.reason}`));

// ------------------------------------------------------------------------------------------- the connection

let harm = ""; // what is done to the next message of events: no TCP does it, a bad intermediary or server may
let kept; // a message that comes after the next

function harmed(e) {
  const out = [e];
  if (harm && e.data.trimEnd().split("\n").every((line) => line.startsWith('{"op":"event"'))) {
    if (harm === "lose") out.length = 0, counts.lost++;
    else if (harm === "twice") out.push(e), counts.twice++;
    else kept = out.pop(), counts.swapped++;
    harm = "";
  } else if (kept) {
    out.push(kept);
    kept = undefined;
  }
  return out;
}

let expired = Number(sessionStorage.getItem("expired")); // connections that ended for their token

class Watched extends WebSocket {
  constructor(...args) {
    super(...args);
    counts.dials++;
    kept = undefined;
    this.addEventListener("close", ({ code }) => {
      if (code !== 4401) return;
      counts.expired++;
      sessionStorage.setItem("expired", ++expired);
    });
  }
  set onmessage(f) {
    super.onmessage = f && ((e) => {
      counts.messages++;
      if (e.data.includes('"op":"reset"')) counts.resets++;
      for (const [i, message] of harmed(e).entries()) {
        const before = counts.subscribes;
        f(message);
        if (i > 0 && message === e && counts.subscribes > before) troubles.push("needless: subscribed again for what came twice");
      }
    });
  }
  send(text) {
    if (text.includes('"op":"subscribe"')) counts.subscribes++;
    super.send(text);
  }
}

// What the snapshot said goes into the state, so that a state says what it was made of.
const reads = new Set(); // of this page
async function reading(input, init) {
  const response = await fetch(input, init);
  if (!response.ok) return response;
  const body = await response.json();
  const { read, values } = body.state;
  counts.snapshots++;
  if (body.pending.length > 0) counts.held++;
  reads.add(read);
  body.state = { values, seen: [], base: { read, values, cursor: body.cursor, pending: body.pending } };
  return Response.json(body);
}

// A token for a few seconds, from an application that sometimes cannot give one, or gives an old one.
async function token() {
  counts.tokens++;
  const what = random(8);
  if (what === 0) throw new Error("no token today");
  const response = await fetch(`/token?life=${what === 1 ? -1 : 1 + random(4)}`);
  if (!response.ok) throw new Error(`no token: ${response.status}`);
  return response.text();
}

let was = "idle";
let losses = Number(sessionStorage.getItem("losses") ?? -1) + 1; // a reload is one
const feed = connect({
  url: asked.link,
  token,
  fetch: reading,
  WebSocket: asked.share ? share({ name: asked.share, WebSocket: Watched }) : Watched,
  onerror(e) {
    errors[e.kind] = (errors[e.kind] ?? 0) + 1;
    if (!["snapshot", "token"].includes(e.kind) || e.final) troubles.push(String(e));
  },
  onconnection({ state }) {
    if (was === "open" && state !== "open") losses++, counts.losses++;
    sessionStorage.setItem("losses", losses);
    was = state;
  },
});

// ----------------------------------------------------------------------------------------------- the topics

const last = {}; // the newest state of each topic
const past = []; // those that a snapshot has replaced

const applying = (topic, change) => (state, event) => {
  counts.applied++;
  if (last[topic] && last[topic].base.read !== state.base.read) past.push({ topic, state: last[topic] });
  const values = { ...state.values };
  values[event.key] = change(values[event.key], event.data);
  return (last[topic] = { ...state, values, seen: [...state.seen, [event.epoch, event.offset, event.id]] });
};
const store = asked.keep ? persist({ name: asked.keep, delay: 100, onerror: (e) => troubles.push(String(e)) }) : undefined;
const follow = (name, change) =>
  feed.topic(name, { snapshot: `/view/${name}`, apply: applying(name, change), ...(store && { store }) });
const topics = {
  prices: follow("prices", (_, { value, version }) => [value, version]), // what it is now
  accounts: follow("accounts", ([balance], { by }) => [balance + by]), // by how much: twice is wrong
};
for (const topic of store ? Object.values(topics) : []) {
  const stop = topic.subscribe(({ state }) => {
    if (!state) return;
    stop();
    if (reads.has(state.base.read)) return;
    counts.restored++;
    if (state.base.pending.length > 0) counts["restored with held"]++;
  });
}

// ---------------------------------------------------------------------------------------------- the actions

let trading = false;
let under = 0; // actions that are not over

async function trade() {
  const name = random(3) === 0 ? "prices" : "accounts";
  const topic = topics[name];
  const { values } = topic.view.state ?? {};
  if (!values) return;
  const key = Object.keys(values)[random(Object.keys(values).length)];
  const n = random(9) - 4;
  const request = { url: `/act/${name}`, json: { key, n } };
  const options = { topic, key: crypto.randomUUID() };
  if (name === "prices") options.saw = values[key][1];
  else options.optimistic = (s) => ({ ...s, values: { ...s.values, [key]: [s.values[key][0] + n] } });
  counts.acts++;
  for (;;) {
    try {
      const result = await act(request, options);
      if (result.stale) counts.stale++;
      else {
        counts.done++;
        if (name === "accounts") counts.paid++;
        if (result.response.headers.has("Commitcast-Repeated")) counts.repeated++;
        counts[(await result.shown) ? "shown" : "unshown"]++;
      }
      return;
    } catch (thrown) {
      if (!thrown.unknown) return void troubles.push(String(thrown));
      counts.unknown++; // whoever does not know asks again, with the same key
    }
  }
}

async function traded() {
  under++;
  while (trading) {
    await trade();
    await new Promise((resolve) => setTimeout(resolve, 20 + random(150)));
  }
  under--;
}

// -------------------------------------------------------------------------------------------- for the test

globalThis.torture = {
  status() {
    const { state, retryAt } = feed.connection;
    const views = Object.values(topics).map((t) => t.view);
    const follows = views.every(({ status }) => status === "live" || status === "catching-up");
    const holds = views.every((view) => view.state?.base.pending.length > 0);
    return { state, holds, in: retryAt ? Math.round(retryAt - Date.now()) : 0, follows, losses, expired, expired };
  },
  harm(how) {
    harm = how;
  },
  reread(name) {
    topics[name].reread();
  },
  /** Resolves when what is shown now is on disk. */
  kept() {
    return store.flush();
  },
  nudge() {
    dispatchEvent(new Event("online")); // as a browser says it
  },
  /** Somebody does not want to wait: the network is back, or a button is pressed. */
  hurry() {
    if (random(2)) this.nudge();
    else feed.retry();
  },
  trade(on) {
    trading = on;
    if (on && under === 0) void traded();
  },
  /** What is shown now; the states, too, if asked for. */
  shown(whole) {
    const shown = { under, topics: {} };
    for (const [name, { view }] of Object.entries(topics)) {
      const { status, cursor, optimistic, state } = view;
      shown.topics[name] = { status, cursor: cursor ?? "", optimistic, ...(whole && { state }) };
    }
    return shown;
  },
  /** What was counted and recorded since the last time. A page that ends hands over its last states. */
  report(ends) {
    if (ends) for (const topic in last) past.push({ topic, state: last[topic] });
    const report = structuredClone({ counts, troubles, errors, past });
    for (const name in counts) counts[name] = 0;
    troubles.length = past.length = 0;
    for (const kind in errors) delete errors[kind];
    return report;
  },
};
