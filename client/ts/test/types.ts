// Compiled, never run: what the types allow, and what they do not.

import { connect, type Topic, type View } from "../src/index.js";
import { act } from "../src/act.js";
import { digest } from "../src/digest.js";
import { useAct, useTopic } from "../src/react.js";

interface Market {
  price: number;
}
interface Trade {
  yes: number;
}

const feed = connect({ url: "/v1/ws", token: async (refused) => (refused ? "new" : "old") });
const market: Topic<Market> = feed.topic<Market, Trade>("market:42", {
  snapshot: "/api/markets/42",
  apply: (state, event) => ({ ...state, price: event.data.yes }),
});

export function show(view: View<Market>): number {
  // @ts-expect-error: there may be no state
  view.state.price;
  switch (view.status) {
    case "live":
    case "catching-up":
      return view.state.price;
    case "loading": {
      const none: undefined = view.state;
      return none ?? 0;
    }
    case "offline":
    case "failed":
      // @ts-expect-error: there may be no state
      return view.state.price;
  }
}

export async function buy(): Promise<number | undefined> {
  const result = await act<{ id: number }, Market>({ url: "/buy", json: { shares: 3 } }, { topic: market, optimistic: (s: Market) => s });
  // @ts-expect-error: it may be stale
  result.data;
  if (result.stale) return result.fresh.price;
  const shown: boolean = await result.shown;
  return shown ? result.data.id : undefined;
}

// @ts-expect-error: a snapshot is needed
feed.topic("t", { apply: (s: number) => s });
// @ts-expect-error: apply returns the state
feed.topic<Market>("t", { snapshot: "/", apply: () => undefined });
// @ts-expect-error: a snapshot has pending ids
feed.topic<Market>("t", { snapshot: async () => ({ state: { price: 1 }, cursor: "", epoch: "" }), apply: (s) => s });
// @ts-expect-error: views are not changed
market.view.status = "live";
// @ts-expect-error: the url is needed
connect({});
// @ts-expect-error: an optimistic change returns the state
act({ url: "/" }, { topic: market, optimistic: (s: Market) => s.price });

digest(market, { url: "/digest", of: (state) => String(state.price) });

export function Screen(): number {
  const view = useTopic<Market, Trade>(feed, "market:42", { snapshot: "/", apply: (s, e) => ({ ...s, price: e.data.yes }) });
  const [run, { result }] = useAct<{ id: number }, Market>(view.topic);
  void run({ url: "/buy" }, { optimistic: (s: Market) => s });
  return result?.stale ? result.fresh.price : (result?.data.id ?? view.state?.price ?? 0);
}
