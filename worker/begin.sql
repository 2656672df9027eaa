-- Called by: the sequencer, once for each drain. Locks: session advisory lock ($1, $2), kept; partition row, briefly.
-- Null: another session has this partition's lock for this term. False: a newer term has begun.
SELECT CASE WHEN pg_try_advisory_lock($1, $2) THEN commitcast.begin_drain($3, $4) END
