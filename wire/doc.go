// Package wire is the protocol commitcast.v1 as bytes: names and limits, cursors and epochs, the frames that
// servers and clients exchange, and the table of close codes. docs/protocol.md is the norm; the golden vectors in
// wire/testdata are run by every implementation.
//
// The package is pure: standard library only, no I/O, no goroutines. All functions are safe for concurrent use.
// Encoders append to a caller's buffer and never fail; decoders accept any bytes, never panic, and answer with an
// [Error] that can be sent to the peer as it is.
package wire

// Protocol is the name of the protocol: the WebSocket subprotocol and the value in hello.
const Protocol = "commitcast.v1"
