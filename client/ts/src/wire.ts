// The protocol commitcast.v1 as text: cursors and frames. Pure. The golden vectors in wire/testdata hold it and the
// server's package wire together.

/** The name of the protocol: the WebSocket subprotocol, and `protocol` in hello. */
export const PROTOCOL = "commitcast.v1";

/** A position in one topic: the last offset seen, and the epoch it was seen in. In text `epoch:offset`. */
export interface Cursor {
  readonly epoch: string;
  readonly offset: number;
}

/** One event, as the server sent it. */
export interface Event<D = unknown> {
  readonly topic: string;
  readonly epoch: string;
  readonly offset: number;
  /** What `commitcast.append` returned to the writer. */
  readonly id: number;
  readonly type: string;
  readonly key?: string;
  /** When the writer appended it: UTC, RFC 3339, microseconds. */
  readonly at: string;
  readonly data: D;
  readonly headers?: Readonly<Record<string, unknown>>;
}

export interface Hello {
  op: "hello";
  protocol?: string;
  node?: string;
  session?: string;
  epoch: string;
  heartbeat_ms: number;
}
export interface Subscribed {
  op: "subscribed";
  id: number;
  topic: string;
  epoch: string;
  after: number;
  head: number;
}
export interface EventFrame extends Event {
  op: "event";
  skip?: boolean;
  /** How many events before this one were left out. */
  conflated?: number;
  /** To be applied together with the next event, or not at all. */
  more?: boolean;
}
export interface Unsubscribed {
  op: "unsubscribed";
  id: number;
  topic: string;
}
export interface Reset {
  op: "reset";
  topic: string;
  epoch: string;
  head: number;
  reason: string;
  in_ms: number;
}
export interface Heartbeat {
  op: "heartbeat";
  epoch: string;
  heads: Record<string, number>;
  /** Of the topics that are in another epoch than `epoch`. */
  epochs?: Record<string, string> | null;
}
export interface Refusal {
  op: "error";
  id: number;
  code: string;
  message: string;
}
export interface Reconnect {
  op: "reconnect";
  in_ms: number;
}
export type Frame = Hello | Subscribed | EventFrame | Unsubscribed | Reset | Heartbeat | Refusal | Reconnect;

type Check = (v: any) => boolean;
const EPOCH = /^[1-9]\d{0,9}-[0-9a-f]{4,16}$/;
const TOPIC = /^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$/;

/** Whether v is an integer that every JSON parser keeps exact: an offset, an id, a number of milliseconds. */
export const isInteger: Check = (v) => Number.isSafeInteger(v) && v >= 0;
const isText: Check = (v) => typeof v === "string";
const isMap = (of: Check): Check => (v) => v instanceof Object && !Array.isArray(v) && Object.values(v).every(of);
export const isEpoch: Check = (v) => isText(v) && EPOCH.test(v);
export const isTopic: Check = (v) => isText(v) && TOPIC.test(v);

// What must hold of a frame before anything is done with it: the fields of each op, and what each field is (an integer
// if nothing else is said). Fields that are not named are not looked at.
const FIELDS: Record<string, string> = {
  hello: "epoch heartbeat_ms",
  subscribed: "id topic epoch after head",
  event: "topic epoch offset id conflated type at data",
  unsubscribed: "id topic",
  reset: "topic epoch head reason in_ms",
  heartbeat: "epoch heads epochs",
  error: "id code message",
  reconnect: "in_ms",
};
const SKIP = 5; // fields that a skipped event has: no type, no data; and no other frame has more
const IS: Record<string, Check> = {
  topic: isTopic, epoch: isEpoch, heads: isMap(isInteger), data: (v) => v !== undefined,
  conflated: (v) => isInteger(v ?? 0), epochs: (v) => isMap(isEpoch)(v ?? {}),
  type: isText, at: isText, reason: isText, code: isText, message: isText,
};

/** The lines of a message: a server joins frames when several are due. */
export function lines(message: string): string[] {
  return message.split("\n").filter((line) => line.trim() !== "");
}

/**
 * Reads one line of a server's message. Throws if it is not a frame. `undefined` is a frame with an op of a later
 * server.
 */
export function parse(line: string): Frame | undefined {
  const f = JSON.parse(line);
  if (!isText(f?.op) || f.op === "") throw new SyntaxError("no op");
  const fields = Object.hasOwn(FIELDS, f.op) && FIELDS[f.op];
  if (!fields) return;
  for (const field of fields.split(" ").slice(0, f.skip === true ? SKIP : 9)) {
    if (!(IS[field] ?? isInteger)(f[field])) throw new SyntaxError(`bad ${field} of ${f.op}`);
  }
  return f;
}

/** The epoch that a topic is in, as a heartbeat says. */
export function epochOf(f: Heartbeat, topic: string): string {
  const epoch = f.epochs?.[topic];
  return isText(epoch) ? epoch! : f.epoch; // a topic may be called like a property of every object
}

/** Reads `epoch:offset`. `undefined` if it is not a cursor. */
export function parseCursor(text: unknown): Cursor | undefined {
  const [epoch, digits, more] = isText(text) ? (text as string).split(":") : [];
  const offset = Number(digits);
  if (more === undefined && isEpoch(epoch) && isInteger(offset) && String(offset) === digits) {
    return { epoch: epoch!, offset };
  }
  return;
}

/** The text form of a cursor. */
export const formatCursor = (c: Cursor): string => `${c.epoch}:${c.offset}`;

/**
 * Whether an event sequenced in `epoch` cannot follow a cursor of epoch `at`: it is of an older history, or of another
 * one with the same ordinal.
 */
export function isForeign(epoch: string, at: string): boolean {
  const a = parseInt(epoch);
  const b = parseInt(at);
  return a < b || (a === b && epoch !== at);
}

export const auth = (token: string): string => JSON.stringify({ op: "auth", token });
export const request = (op: "subscribe" | "unsubscribe", id: number, topic: string, after?: string, conflate?: boolean): string =>
  JSON.stringify({ op, id, topic, after, conflate });
