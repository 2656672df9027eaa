// React: a topic as state, an action as a function.

import { useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { act, type ActOptions, type ActRequest, type ActResult } from "./act.js";
import type { Feed, Topic } from "./feed.js";
import type { TopicOptions, View } from "./topic.js";

const LOADING: View<any> = Object.freeze({
  status: "loading", state: undefined, cursor: undefined, error: undefined, optimistic: false,
});
/** A component that is replaced by another with the same topic must not cost a snapshot. */
const LINGER = 1_000;

/** A view, and the topic behind it for `act`; `topic` is undefined until the component is mounted. */
export type TopicView<S> = View<S> & { readonly topic: Topic<S> | undefined };

/**
 * Follows a topic while the component is mounted. Components that name the same topic share it, and the options of the
 * first; functions may be inline, and the newest of the first component are used.
 */
export function useTopic<S, D = unknown>(feed: Feed, name: string, options: TopicOptions<S, D>): TopicView<S> {
  const newest = useRef(options);
  useEffect(() => {
    newest.current = options;
  });
  const store = useMemo(() => {
    let topic: Topic<S> | undefined;
    let shown: { view: View<S>; topic: Topic<S> | undefined; whole: TopicView<S> } | undefined;
    const read = (): TopicView<S> => {
      const view = topic?.view ?? (LOADING as View<S>);
      if (shown?.view !== view || shown.topic !== topic) {
        shown = { view, topic, whole: Object.freeze({ ...view, topic }) as TopicView<S> };
      }
      return shown.whole;
    };
    const subscribe = (changed: () => void): (() => void) => {
      const { snapshot, key, store, conflate, skipped, onevent } = newest.current;
      const own = feed.topic<S, D>(name, {
        snapshot: typeof snapshot === "function" ? (signal) => (newest.current.snapshot as typeof snapshot)(signal) : snapshot,
        apply: (state, event) => newest.current.apply(state, event),
        ...(key !== undefined && { key }),
        ...(store && { store }),
        ...(conflate && { conflate }),
        ...(skipped && { skipped }),
        ...(onevent && { onevent: (event, state) => newest.current.onevent?.(event, state) }),
      });
      topic = own;
      const stop = own.subscribe(changed);
      return () => {
        stop();
        setTimeout(() => own.close(), LINGER);
      };
    };
    return { read, subscribe };
  }, [feed, name, options.key]);
  return useSyncExternalStore(store.subscribe, store.read, () => LOADING as TopicView<S>);
}

/** What became of the last action. */
export interface Acting<T, F> {
  /** Whether an action is under way. */
  readonly pending: boolean;
  readonly result: ActResult<T, F> | undefined;
  readonly error: unknown;
}

/**
 * `const [buy, {pending, result, error}] = useAct(topic)`. The function never rejects: it resolves to the result, or to
 * undefined, and `error` is then set.
 */
export function useAct<T = unknown, F = unknown, S = any>(
  topic?: Topic<S>,
): [(request: ActRequest, options?: ActOptions<S>) => Promise<ActResult<T, F> | undefined>, Acting<T, F>] {
  const [acting, setActing] = useState<Acting<T, F>>({ pending: false, result: undefined, error: undefined });
  const turn = useRef(0);
  const run = useCallback(async (request: ActRequest, options: ActOptions<S> = {}) => {
    const own = ++turn.current;
    const show = (next: Acting<T, F>): void => {
      if (own === turn.current) setActing(next);
    };
    show({ pending: true, result: undefined, error: undefined });
    try {
      const result = await act<T, F, S>(request, { ...(topic && { topic }), ...options });
      show({ pending: false, result, error: undefined });
      return result;
    } catch (error) {
      show({ pending: false, result: undefined, error });
      return undefined;
    }
  }, [topic]);
  return [run, acting];
}
