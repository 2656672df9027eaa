// Package app is the composition root: it reads the command line, opens the database and the stream, runs worker and
// broadcaster, serves HTTP, and shuts everything down in the order in which data flows.
package app
