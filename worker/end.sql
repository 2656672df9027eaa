-- Called by: the sequencer, when a drain has ended. Locks: gives up the session advisory lock ($1, $2).
SELECT pg_advisory_unlock($1, $2)
