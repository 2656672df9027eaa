// Package ts carries the TypeScript client as one file of JavaScript, for Go programs that serve a page without a build
// step. It is an ES module: `import { connect, act, digest } from "./commitcast.js"`. README.md beside it has the API.
package ts

import _ "embed"

// JS is dist/commitcast.js. Serve it as text/javascript; it must not be changed.
//
//go:embed dist/commitcast.js
var JS []byte
