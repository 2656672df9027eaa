// Package worker is the second stage: it gives offsets to committed events and publishes them, under River.
//
// A dispatcher in each process finds partitions that have work and no living owner, and inserts one River job,
// outbox_drain, unique on partition and term. The job takes a session advisory lock on (partition, term), by which
// everyone can see that it lives, and drains the partition for as long as there is traffic: it moves outbox rows to the
// journal in batches, reads them back, and offers them to the stream. All drains of a process go to Postgres together, by
// one session that holds their locks: the sequencer.
//
// Guarantees. Offsets follow the order of the outbox (G3) because one transaction at a time sequences a partition,
// under its row lock. A batch is offered to the stream only after it is durable (G4). partition.published passes an
// event only after the stream confirmed it, in the current epoch. Two drains of one partition at once do no harm:
// the row lock orders their sequencing and the stream refuses what does not fit. So takeover is eager: an owner that
// is gone or silent is passed by the next term, within tens of milliseconds if its connection broke and within
// seconds if it was stopped (G6). A stream that is down stops publishing, never sequencing. A topic that the stream
// refuses is retried by itself, and its neighbours flow.
//
// Concurrency and lifecycle. [New] opens nothing. [Worker.Run] owns every goroutine and connection, blocks until its
// context ends, and then publishes what it has sequenced and hands its partitions over. A Worker runs once. Owner and
// listener connections carry session state, so they, and River's own listener, are opened from the pool's connection
// settings, which must reach Postgres itself and not a pooler that shares sessions.
package worker
