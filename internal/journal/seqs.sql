-- How far each partition is sequenced. Called by Reader.Seqs, about once a second by each broadcaster. Locks: none.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), id::bigint, seq FROM commitcast.partition
