// What an action is expected to do, shown until its events arrive.

import type { Env } from "./env.js";
import type { Topic } from "./feed.js";

/** How long a confirmed change waits for its events. */
const SETTLE_WITHIN = 10_000;
/** How many ids of events are remembered while a change is not confirmed. */
const SEEN = 4_096;

export interface Expected {
  /** It was done: it goes when the events with these ids have arrived. Resolves to whether they did. */
  settle(ids: readonly number[]): Promise<boolean>;
  /** It was not. */
  drop(): void;
}

/**
 * Shows a change on top of a topic's state. Its events are recognised by their ids, which the answer brings, or by the
 * header `idempotency-key` of the event, which needs no answer: an event may well be faster.
 */
export function expect<S>(topic: Topic<S>, key: string, change: ((state: S) => S) | undefined, env: Env): Expected {
  const seen = new Set<number>();
  let awaited: Set<number> | undefined; // confirmed, and not arrived yet
  let replaced = false; // the state was read again: it may hold the events already, and then they never arrive
  let arrived: boolean | undefined;
  let timer: unknown;
  let resolve: ((arrived: boolean) => void) | undefined;

  const done = (how: boolean): true => {
    arrived ??= how;
    env.clearTimeout(timer);
    resolve?.(arrived);
    return true;
  };
  const remove = topic.layer({
    optimistic: change !== undefined,
    change: change ?? ((state) => state),
    passed(event) {
      if (event.headers?.["idempotency-key"] === key) return done(true);
      if (seen.size < SEEN) seen.add(event.id);
      return awaited !== undefined && awaited.delete(event.id) && awaited.size === 0 && done(true);
    },
    // Shown a moment late, a change was true a moment ago. Shown twice, it never was.
    replaced() {
      replaced = true;
      return awaited !== undefined && done(false);
    },
  });

  return {
    drop() {
      done(false);
      remove();
    },
    settle(ids) {
      awaited = new Set(ids.filter((id) => !seen.has(id)));
      if (awaited.size === 0) done(ids.length > 0);
      else if (replaced) done(false);
      if (arrived !== undefined) {
        remove();
        return Promise.resolve(arrived);
      }
      timer = env.setTimeout(() => {
        done(false);
        remove();
      }, SETTLE_WITHIN);
      return new Promise((r) => (resolve = r));
    },
  };
}
