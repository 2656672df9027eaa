// Package journal reads the journal: positions of topics, the validity of cursors, and events by offset. It is how
// broadcasters, which know no SQL, and the worker's backfill ask the database. It never writes.
//
// All types are safe for concurrent use.
package journal
