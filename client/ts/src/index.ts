// The core: follow topics. Writing is in ./act, the last net in ./digest.

export { connect, type Feed, type FeedOptions, type Topic } from "./feed.js";
export { CommitcastError, type ErrorKind } from "./errors.js";
export type { Connection, Token } from "./socket.js";
export type { Layer, Status, Store, TopicOptions, View } from "./topic.js";
export type { Snapshot, SnapshotSource } from "./snapshot.js";
export type { Event } from "./wire.js";
export type { Env, Socket, SocketConstructor } from "./env.js";
