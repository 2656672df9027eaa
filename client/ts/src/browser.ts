// Everything that a page without a build step needs, in one file: dist/commitcast.js.

export { connect } from "./feed.js";
export { act, ActError } from "./act.js";
export { digest } from "./digest.js";
export { CommitcastError } from "./errors.js";
