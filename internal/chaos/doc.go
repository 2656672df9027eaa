// Command chaos breaks a whole Commitcast in every way it knows, and then looks for a lost, misordered, doubled or
// invented event. It starts a private Postgres and Redis, two workers and three broadcasters as processes of their own,
// each behind proxies of its own, writers that also abort and dawdle, and clients that follow docs/protocol.md. Rounds of
// overlapping faults, drawn from a seed, run on processes that stay; after each round everything is healed, must settle,
// and is verified: what the writers were told against the database, what the clients were shown against the journal, and
// the structure of what lies between, since each layer hides the mistakes of the one before.
//
//	make chaos ARGS="-rounds 50"
//	make chaos ARGS="-standby -rounds 10"
//	make chaos ARGS="-hosts -rounds 50"
//	make chaos ARGS="-hosts -redis cluster -rounds 50"    and -redis sentinel
//	make chaos ARGS="-rounds 1000 -failovers 60"    what docs/guarantees.md quotes
//	make chaos ARGS="-bug early-append"    the checker on a product with a seeded bug: it must be caught
//
// A round's schedule follows from its own seed alone; a failing run prints that, and `-seed` repeats it. How processes
// interleave does not follow from it, so a repeat may need several tries.
package main
