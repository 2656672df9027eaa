-- Called by: Worker.survey, every 5 s. Locks: none.
-- What waits where and since when, in seconds by this clock; what is set aside; the journal. Counts of what may be many stop
-- at $1, of a partition's waiting events as of the others. The columns are those of surveyed, in order; the last one tells who
-- has appended and not ended.
WITH p AS (
    SELECT p.seq, p.published, p.paused_at,
        (SELECT count(*) FROM (SELECT FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT $1) AS w) AS waiting,
        (SELECT o.created_at FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT 1) AS waiting_since,
        (SELECT j.created_at FROM commitcast.journal j WHERE p.seq > p.published AND j.partition = p.id AND j.seq > p.published
            ORDER BY j.seq LIMIT 1) AS unpublished_since
    FROM commitcast.partition p
), leaf AS (
    SELECT to_date(substr(c.relname, 9), 'YYYYMMDD') AS day, pg_total_relation_size(c.oid) AS bytes
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'commitcast.journal'::regclass
)
SELECT sum(waiting)::float8, greatest(0, coalesce(extract(epoch FROM clock_timestamp() - min(waiting_since)), 0))::float8,
    sum(seq - published)::float8, greatest(0, coalesce(extract(epoch FROM clock_timestamp() - min(unpublished_since)), 0))::float8,
    count(paused_at)::float8, sum(seq)::float8, sum(published)::float8,
    (SELECT count(*) FROM (SELECT FROM commitcast.parked ORDER BY topic LIMIT $1) AS s)::float8,
    (SELECT count(*) FROM (SELECT FROM commitcast.parked WHERE died_at IS NOT NULL ORDER BY topic LIMIT $1) AS s)::float8,
    (SELECT count(*) FROM (SELECT FROM commitcast.dead_letter WHERE redriven_at IS NULL ORDER BY died_at LIMIT $1) AS s)::float8,
    (SELECT coalesce(sum(bytes), 0) FROM leaf)::float8,
    (SELECT coalesce(extract(epoch FROM now() - min(day)::timestamp AT TIME ZONE 'UTC'), 0) FROM leaf WHERE bytes > 0)::float8,
    (SELECT coalesce(max(day) - (now() AT TIME ZONE 'UTC')::date, -1) FROM leaf)::float8,
    pg_stat_get_dead_tuples('commitcast.outbox'::regclass)::float8,
    (SELECT coalesce(max(ordinal), 0) FROM commitcast.epoch)::float8,
    (SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}') FROM pg_locks l WHERE l.locktype = 'relation' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.relation = 'commitcast.outbox'::regclass AND l.mode = 'RowExclusiveLock')::text[]
FROM p
