// States kept over a reload, in IndexedDB: a state and its cursor are one record, so they are written in one
// transaction or not at all.

import { here, type Env } from "./env.js";
import { CommitcastError } from "./errors.js";
import type { Snapshot } from "./snapshot.js";
import type { Store } from "./topic.js";

export interface PersistOptions {
  /** Of the database, in IndexedDB. Name the user in it: what one user saw is not for the next. */
  name: string;
  /** Of the shape of your states. What was kept under another version is not used. Default 1. */
  version?: number;
  /** How long after a change it is written, in milliseconds; at once when the page is hidden. Default 500. */
  delay?: number;
  /** How old a kept state may be, in milliseconds. Default one day. An older one costs more events than a snapshot. */
  maxAge?: number;
  /** Default: that of the platform. Without one, nothing is kept. */
  indexedDB?: IDBFactory;
  /** Receives errors; nothing is kept then, and nothing is wrong. Default: `console.warn`. */
  onerror?: (error: CommitcastError) => void;
  env?: Env;
}

/** A store in IndexedDB, for `TopicOptions.store`. */
export interface PersistentStore extends Store {
  /** Writes what is still to be written. */
  flush(): Promise<void>;
  /** Forgets everything: call it at logout. */
  clear(): Promise<void>;
  /** Writes the rest and closes the database. */
  close(): Promise<void>;
}

interface Kept {
  version: number;
  savedAt: number;
  snapshot: Snapshot<unknown>;
}

const TABLE = "topics";
const LOAD_WITHIN = 2_000;

/** Opens a store. Nothing happens before it is used. */
export function persist(options: PersistOptions): PersistentStore {
  const { name, version = 1, delay = 500, maxAge = 86_400_000, env = here } = options;
  const factory = options.indexedDB ?? globalThis.indexedDB;
  const dirty = new Map<string, Kept>();
  let opened: Promise<IDBDatabase> | undefined;
  let timer: unknown;
  let writing: Promise<void> = Promise.resolve();

  const failed = (what: string, cause: unknown): void =>
    (options.onerror ?? console.warn)(new CommitcastError("store", what, { cause }));

  function open(): Promise<IDBDatabase> {
    opened ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = factory.open(name, 1);
      request.onupgradeneeded = () => void request.result.createObjectStore(TABLE);
      request.onsuccess = () => {
        const db = request.result;
        db.onversionchange = db.onclose = () => {
          db.close();
          opened = undefined;
        };
        resolve(db);
      };
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("blocked by another tab"));
    });
    opened.catch(() => (opened = undefined));
    return opened;
  }

  /** Runs one transaction, to its end. */
  async function run<T>(mode: IDBTransactionMode, f: (table: IDBObjectStore) => IDBRequest<T> | void): Promise<T | undefined> {
    const db = await open();
    return new Promise((resolve, reject) => {
      const tx = db.transaction(TABLE, mode);
      const request = f(tx.objectStore(TABLE));
      tx.oncomplete = () => resolve(request?.result);
      tx.onabort = () => reject(tx.error ?? new Error("aborted"));
    });
  }

  function flush(): Promise<void> {
    env.clearTimeout(timer);
    timer = undefined;
    writing = writing.then(async () => {
      const batch = [...dirty];
      if (batch.length === 0) return;
      dirty.clear();
      try {
        await run("readwrite", (table) => {
          for (const [key, kept] of batch) table.put(kept, key);
        });
      } catch (thrown) {
        failed("states could not be kept", thrown);
      }
    });
    return writing;
  }

  const deaf = env.listen(() => {
    if (env.hidden()) void flush();
  });

  return {
    async load(key) {
      if (!factory) return undefined;
      let late: unknown;
      try {
        const kept = await Promise.race([
          run<Kept>("readonly", (table) => table.get(key)),
          new Promise<never>((_, reject) => {
            late = env.setTimeout(() => reject(new Error("no answer in 2 s")), LOAD_WITHIN);
          }),
        ]);
        if (kept?.version === version && Math.abs(env.now() - kept.savedAt) <= maxAge) return kept.snapshot;
      } catch (thrown) {
        failed("what was kept could not be read", thrown);
      } finally {
        env.clearTimeout(late);
      }
      return undefined;
    },
    save(key, snapshot) {
      if (!factory) return;
      dirty.set(key, { version, savedAt: env.now(), snapshot });
      timer ??= env.setTimeout(() => void flush(), delay);
    },
    flush,
    async clear() {
      dirty.clear();
      await writing;
      if (factory) await run("readwrite", (table) => void table.clear());
    },
    async close() {
      deaf();
      await flush();
      const db = await opened?.catch(() => undefined);
      opened = undefined;
      db?.close();
    },
  };
}
