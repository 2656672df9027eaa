// Reading a snapshot, and believing none that is not one.

import { reason } from "./errors.js";
import type { Held } from "./machine.js";
import { isEpoch, isInteger, parseCursor } from "./wire.js";

/** What a snapshot holds: a state, and where it stands. The last three are as `outbox.Snapshot` in Go returns them. */
export interface Snapshot<S> {
  readonly state: S;
  /** `epoch:offset` of the newest event in the state. */
  readonly cursor: string;
  /** Ids of events in the state that have no offset yet. */
  readonly pending: readonly number[];
  /** The epoch that was current when it was read. */
  readonly epoch: string;
}

/** A function that reads a snapshot, or the URL of one as JSON: `{state, cursor, pending, epoch}`. */
export type SnapshotSource<S> = string | URL | ((signal: AbortSignal) => Promise<Snapshot<S>>);

/** Retry-After of an answer, in milliseconds; 0 if there is none. */
export const retryAfter = (response: Response): number =>
  Math.min(Number(response.headers.get("Retry-After")) || 0, 300) * 1000;

/** What a source may tell of a failure, as properties of the error that it throws. */
export interface Unread {
  /** Reading again will not help until something changes: the status is `failed`. It is tried all the same. */
  final?: boolean;
  /** Not to be read again before so many milliseconds. */
  ms?: number;
}

const unread = (message: string, final: boolean, ms = 0): Error & Unread => Object.assign(new Error(message), { final, ms });

/** Reads a source. Rejects when the signal says so, whatever the source does. */
export async function read<S>(source: SnapshotSource<S>, fetch: typeof globalThis.fetch, signal: AbortSignal): Promise<Held<S>> {
  const aborted = new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  const answer = (async () => (typeof source === "function" ? source(signal) : get(String(source), fetch, signal)))();
  return check((await Promise.race([answer, aborted])) as Snapshot<S>);
}

async function get(url: string, fetch: typeof globalThis.fetch, signal: AbortSignal): Promise<unknown> {
  const response = await fetch(url, {
    signal,
    redirect: "manual",
    cache: "no-store",
    headers: { Accept: "application/json" },
  });
  const { ok, status, type } = response;
  if (!ok) {
    const moved = type === "opaqueredirect" || (status >= 300 && status < 400);
    const passing = status >= 500 || [408, 425, 429].includes(status);
    throw unread(`${url} answered ${moved ? "with a redirect" : status}`, !passing, retryAfter(response));
  }
  try {
    return await response.json();
  } catch (thrown) {
    throw unread(`${url} did not answer with JSON: ${reason(thrown)}`, true);
  }
}

/** A snapshot, or a kept one, as a machine holds it. Throws if it is not one. */
export function check<S>(raw: Snapshot<S>): Held<S> {
  const cursor = parseCursor(raw?.cursor);
  const what =
    !cursor ? "cursor"
    : !isEpoch(raw.epoch) ? "epoch"
    : !Array.isArray(raw.pending) || !raw.pending.every(isInteger) ? "pending ids"
    : raw.state === undefined ? "state"
    : undefined;
  if (what) throw unread(`it has no valid ${what}`, true);
  return { state: raw.state, cursor: cursor!, pending: [...raw.pending], epoch: raw.epoch };
}
