// Writing: an action carries what its author saw, and one key for all its attempts.

import { here, jitter, type Env } from "./env.js";
import type { Topic } from "./feed.js";
import { expect } from "./optimistic.js";
import { reason } from "./errors.js";
import { retryAfter } from "./snapshot.js";

/** A request. `json` is sent as JSON; `body` as it is. */
export interface ActRequest {
  url: string | URL;
  /** Default POST. */
  method?: string;
  headers?: HeadersInit;
  json?: unknown;
  body?: BodyInit;
}

export interface ActOptions<S> {
  /**
   * What the author saw, sent as Commitcast-Saw. A number is a version: it goes with the cursor of `topic`, which says in
   * which history it was seen. A string is sent as it is: a cursor, or `cursor;value`. Default: the cursor of `topic`.
   */
  saw?: string | number;
  /** The topic that the action is about. */
  topic?: Topic<S>;
  /** What to show of it until its event arrives; taken back if the action fails. Needs `topic`. */
  optimistic?: (state: S) => S;
  /** Sent as Idempotency-Key, the same for each attempt. Default: a new one. Give one to repeat an earlier intent. */
  key?: string;
  /** Ends it. The server may have done it all the same. */
  signal?: AbortSignal;
  /** How many attempts an answer that got lost is worth. Default 5. */
  attempts?: number;
  /** How long one attempt may take, in milliseconds. Default 15 s. */
  timeout?: number;
  /** Finds the ids of the events that were written. Default: the header Commitcast-Event, ids joined by commas. */
  events?: (body: any, response: Response) => number | readonly number[] | undefined;
  fetch?: typeof globalThis.fetch;
  env?: Env;
}

/** An answer: done, or refused because something has changed since the author looked. */
export type ActResult<T, F = unknown> =
  | { readonly stale: false; readonly data: T; readonly response: Response; readonly shown: Promise<boolean> }
  | { readonly stale: true; readonly fresh: F; readonly response: Response };

/** It was refused for another reason, or it is not known what became of it. */
export class ActError extends Error {
  override readonly name = "ActError";
  /** Of the last answer; 0 if there was none. */
  readonly status: number;
  /** Its body, as JSON if it was. */
  readonly body: unknown;
  /** Whether it may have been done: the answer was lost. Repeat it with the same key to find out. */
  readonly unknown: boolean;
  readonly key: string;
  constructor(message: string, key: string, status: number, unknown: boolean, body?: unknown, cause?: unknown) {
    super(message, { cause });
    this.key = key;
    this.status = status;
    this.unknown = unknown;
    this.body = body;
  }
}

const RETRY_BASE = 300;
const RETRY_CAP = 10_000;
/** Answers that promise that nothing was done, or come from a proxy that does not know. */
const AGAIN = [408, 425, 429, 502, 503, 504];

/**
 * Sends an action. Resolves to the answer, also if that is "stale"; `shown` then resolves to whether the events were
 * seen to arrive in the topic. Rejects with an ActError, or with the reason of the signal.
 */
export async function act<T = unknown, F = unknown, S = any>(
  request: ActRequest, options: ActOptions<S> = {},
): Promise<ActResult<T, F>> {
  const { topic, optimistic, signal } = options;
  const key = options.key ?? newKey();
  const cursor = topic?.view.cursor;
  const saw = typeof options.saw === "number" && cursor !== undefined ? `${cursor};${options.saw}` : (options.saw ?? cursor);
  const headers = new Headers(request.headers);
  headers.set("Idempotency-Key", key);
  if (saw !== undefined) headers.set("Commitcast-Saw", String(saw));
  if (request.json !== undefined && !headers.has("Content-Type")) headers.set("Content-Type", "application/json");
  const init: RequestInit = {
    method: request.method ?? "POST",
    headers,
    body: request.json === undefined ? (request.body ?? null) : JSON.stringify(request.json),
  };

  signal?.throwIfAborted();
  const expected = topic && expect(topic, key, optimistic, options.env ?? here);
  try {
    const { response, body } = await send(String(request.url), init, key, options);
    if (response.status === 409) {
      expected?.drop();
      return { stale: true, fresh: body as F, response };
    }
    if (!response.ok) throw new ActError(`${request.url} answered ${response.status}`, key, response.status, false, body);
    const shown = expected?.settle(eventIDs(body, response, options.events)) ?? Promise.resolve(false);
    return { stale: false, data: body as T, response, shown };
  } catch (thrown) {
    expected?.drop();
    throw thrown;
  }
}

/** Sends until there is an answer. */
async function send(
  url: string, init: RequestInit, key: string, options: ActOptions<any>,
): Promise<{ response: Response; body: unknown }> {
  const { signal, attempts = 5, timeout = 15_000, fetch = globalThis.fetch, env = here } = options;
  for (let attempt = 1; ; attempt++) {
    const limit = new AbortController();
    const stop = () => limit.abort(signal!.reason);
    const timer = env.setTimeout(() => limit.abort(new Error(`no answer in ${timeout} ms`)), timeout);
    signal?.addEventListener("abort", stop);
    let pause = 0;
    try {
      const response = await fetch(url, { ...init, signal: limit.signal });
      const text = await response.text(); // an answer that breaks off is a lost one
      if (!AGAIN.includes(response.status) || attempt >= attempts) return { response, body: decode(text) };
      pause = retryAfter(response);
    } catch (thrown) {
      signal?.throwIfAborted();
      if (attempt >= attempts) {
        throw new ActError(`no answer from ${url}: ${reason(thrown)}`, key, 0, true, undefined, thrown);
      }
    } finally {
      env.clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
    await sleep(pause + jitter(env, RETRY_BASE, attempt, RETRY_CAP), env, signal);
  }
}

function sleep(ms: number, env: Env, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      env.clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = env.setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

function decode(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function eventIDs(body: unknown, response: Response, find: ActOptions<any>["events"]): readonly number[] {
  const found = find ? find(body, response) : (response.headers.get("Commitcast-Event") ?? "").split(",").map(Number);
  return [found ?? []].flat().filter((id) => Number.isSafeInteger(id) && id > 0) as number[];
}

/** 128 random bits. `crypto.randomUUID` is missing on pages without TLS. */
const newKey = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
