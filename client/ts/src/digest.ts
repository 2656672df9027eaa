// The last net: ask the database itself, now and then, whether what is shown is so.

import { here, type Env } from "./env.js";
import type { Topic } from "./feed.js";
import { reason } from "./errors.js";
import { parseCursor } from "./wire.js";

export interface DigestOptions<S> {
  /** Answers `{cursor, digest?}` with an ETag; 304 to an If-None-Match that is still right. */
  url: string | URL;
  /** How often, on average, in milliseconds. Default 60 s. Nothing is asked in a hidden tab. */
  every?: number;
  /** The digest of a state, to be compared with that of the database. Default: only ETags are compared. */
  of?: (state: S) => string;
  /** Called when the state was found wrong, before it is read again. `onerror` hears of it, too. */
  ondiverge?: (what: { topic: string; cursor: string; reason: string }) => void;
  fetch?: typeof globalThis.fetch;
  env?: Env;
}

interface Sighting {
  cursor: string;
  etag: string;
  digest?: unknown;
}

const EVERY = 60_000;
/** A difference is believed when it is still there after this long: a commit may be on its way. */
const CONFIRM = 3_000;
const TIMEOUT = 15_000;

/**
 * Compares a topic with the database from time to time, and reads its snapshot again if they differ where they should
 * not: the data changed without an event, or the state is not what the events say. Returns how to stop.
 */
export function digest<S>(topic: Topic<S>, options: DigestOptions<S>): () => void {
  const { env = here, every = EVERY, of, ondiverge } = options;
  const fetch = options.fetch ?? globalThis.fetch;
  let last: Sighting | undefined; // the last answer that was not a 304
  let doubt: string | undefined; // a difference that has been seen once
  let told: string | undefined; // the difference that was reported last
  let behind: string | undefined; // where the topic stood when the database was ahead
  let timer: unknown;
  let busy = false;
  let stopped = false;

  const plan = (ms: number): void => {
    env.clearTimeout(timer);
    if (!stopped) timer = env.setTimeout(() => void poll(), ms);
  };
  const later = (): void => plan(every * (0.5 + env.random()));
  const deaf = env.listen(() => {
    if (!env.hidden() && !busy) plan(env.random() * Math.min(every, 2_000));
  });

  async function poll(): Promise<void> {
    if (env.hidden()) return; // until the page is looked at
    busy = true;
    const limit = new AbortController();
    const out = env.setTimeout(() => limit.abort(), TIMEOUT);
    try {
      const response = await fetch(String(options.url), {
        signal: limit.signal,
        cache: "no-store",
        headers: last ? { "If-None-Match": last.etag } : {},
      });
      if (response.status === 304 || response.ok) {
        const before = last;
        if (response.ok) last = sighting(await response.json(), response);
        if (!stopped && last && look(last, before)) return plan(CONFIRM);
      }
    } catch {
      // Not the net's business: the connection and the snapshot tell when the server is away.
    } finally {
      env.clearTimeout(out);
      busy = false;
    }
    later();
  }

  /** Compares. True: look again soon. */
  function look(now: Sighting, before: Sighting | undefined): boolean {
    const { status, cursor, state, optimistic } = topic.view;
    const own = parseCursor(cursor);
    const theirs = parseCursor(now.cursor)!;
    if (status !== "live" || !own || optimistic) return false;
    if (own.offset < theirs.offset) {
      if (behind === cursor) return diverge("the database is ahead, and nothing comes", now);
      behind = cursor;
      return true;
    }
    behind = undefined;
    if (own.offset > theirs.offset) return false; // it has moved on meanwhile
    const changed = base?.cursor === now.cursor && base.etag !== now.etag;
    let differs = false;
    if (of && now.digest !== undefined) {
      try {
        differs = of(state!) !== now.digest;
      } catch (thrown) {
        topic.reread(`the digest of the state failed: ${reason(thrown)}`);
      }
    }
    if (!changed && !differs) {
      if (before?.cursor !== now.cursor) base = now;
      doubt = undefined;
      return false;
    }
    const difference = `${now.cursor} ${now.etag}`;
    if (doubt !== difference) {
      doubt = difference;
      return true;
    }
    base = now;
    return diverge(differs ? "the state differs from the database" : "the data changed without an event", now);
  }
  let base: Sighting | undefined; // the first sighting at its cursor

  function diverge(why: string, now: Sighting): false {
    doubt = behind = undefined;
    const difference = `${why} ${now.cursor} ${now.etag}`;
    if (told === difference) return false; // reading again did not help: once is enough
    told = difference;
    try {
      ondiverge?.({ topic: topic.name, cursor: now.cursor, reason: why });
    } finally {
      topic.reread(`${why} (at ${now.cursor})`);
    }
    return false;
  }

  later();
  return () => {
    stopped = true;
    env.clearTimeout(timer);
    deaf();
  };
}

function sighting(body: any, response: Response): Sighting {
  const etag = response.headers.get("ETag");
  if (!etag || !parseCursor(body?.cursor)) throw new TypeError("not a digest");
  return { cursor: body.cursor, etag, digest: body.digest };
}
