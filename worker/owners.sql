-- Called by: the dispatcher, for partitions with work that it did not see progress. Locks: none.
-- The living owners: sessions that hold the advisory lock (class $1 + partition, term), and for how many seconds each
-- has begun and ended no statement (null: this role may not know).
SELECT (l.classid::bigint - $1)::smallint AS partition, l.objid::bigint AS term,
    extract(epoch FROM clock_timestamp() - greatest(a.query_start, a.state_change))::float8 AS silent
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid AND a.state <> 'disabled'
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::bigint BETWEEN $1 AND $1 + 31
