/** A WebSocket as browsers have it: as much of it as is used here. */
export interface Socket {
  onopen: ((e: any) => void) | null;
  onmessage: ((e: { data: any }) => void) | null;
  onclose: ((e: { code: number; reason: string }) => void) | null;
  onerror: ((e: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}
export type SocketConstructor = new (url: string, protocol: string) => Socket;

/** The world outside, so that a test can be another one. */
export interface Env {
  now(): number;
  random(): number;
  setTimeout(f: () => void, ms: number): unknown;
  clearTimeout(timer: any): void;
  /** Calls f when the network or the page changes: online, offline, pageshow, visibilitychange. Returns how to stop. */
  listen(f: (e: { type: string }) => void): () => void;
  /** Whether nobody can see the page. */
  hidden(): boolean;
}

const { document, addEventListener } = globalThis as any;

/** This page, worker or process. */
export const here: Env = {
  now: Date.now,
  random: Math.random,
  setTimeout: (f, ms) => setTimeout(f, ms),
  clearTimeout: (timer) => clearTimeout(timer),
  listen: (f) => {
    const stop = new AbortController();
    for (const type of ["online", "offline", "pageshow"]) addEventListener?.(type, f, stop);
    document?.addEventListener("visibilitychange", f, stop);
    return () => stop.abort();
  },
  hidden: () => document?.visibilityState === "hidden",
};

/** Full jitter: a random part of a time that doubles with each attempt (from 0) up to a cap. Milliseconds. */
export const jitter = (env: Env, base: number, attempt: number, cap: number): number =>
  env.random() * Math.min(cap, base * 2 ** Math.min(attempt, 30));
