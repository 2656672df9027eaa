/**
 * What an error is about:
 * `garbage` the server sent something that is not a frame · `topic` an event of a topic that nobody asked for ·
 * `snapshot` it could not be read, or is not one · `apply` your function threw, or returned nothing ·
 * `token` your callback threw, or the token was refused · `refused` the server refused a request ·
 * `connection` it cannot be made, or must not be made again · `diverged` the state differs from the database's ·
 * `store` persistence failed · `callback` one of your callbacks threw.
 */
export type ErrorKind =
  | "garbage" | "topic" | "snapshot" | "apply" | "token" | "refused" | "connection" | "diverged" | "store" | "callback";

/** What `onerror` receives. Nothing of it has made a state wrong; most of it is being healed already. */
export class CommitcastError extends Error {
  override readonly name = "CommitcastError";
  readonly kind: ErrorKind;
  /** The topic that it is about, if it is about one. */
  readonly topic: string | undefined;
  /** True if trying again will not help until something changes: the status is `failed`. */
  readonly final: boolean;

  /** `cause` is what was thrown; its message becomes part of this one. */
  constructor(
    kind: ErrorKind, message: string,
    more: { topic?: string | undefined; final?: boolean; cause?: unknown } = {},
  ) {
    const { topic, cause } = more;
    super((topic ? topic + ": " : "") + message + (cause ? ": " + reason(cause) : ""), { cause });
    this.kind = kind;
    this.topic = topic;
    this.final = more.final ?? false;
  }
}

/** What somebody threw, in words. */
export const reason = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown));

/** Calls what the page gave. What it throws is reported, and goes no further. */
export function guard(what: string, report: (error: CommitcastError) => void, topic: string | undefined, f: () => void): void {
  try {
    f();
  } catch (cause) {
    report(new CommitcastError("callback", `${what} threw`, { topic, cause }));
  }
}
