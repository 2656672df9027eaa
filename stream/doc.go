// Package stream carries encoded event frames from workers to broadcasters: it publishes runs of a topic's events,
// keeps the newest of them for replay, and hands them to subscribers as they come.
//
// A stream is a cache. The journal in Postgres owns every offset; a stream may be emptied, rolled back or replaced at
// any time, and answers in a way that lets its callers notice: Publish says Duplicate or Gap by comparing offsets,
// Range serves only a run that begins right after the cursor, and a Subscription says when it is down.
//
// There are two implementations, held to one conformance suite: [Redis], for any number of nodes, and [Memory], for
// a worker and a broadcaster in one process. Redis keys, channels and scripts are owned by this package alone.
//
// All types are safe for concurrent use.
package stream
