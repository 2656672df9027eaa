// Package e2e holds the end-to-end tests: real processes of the binary, a real Postgres, a real Redis, and clients on
// real sockets.
package e2e
