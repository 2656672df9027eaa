-- Called by: the dispatcher, for partitions with work that it did not see progress. Locks: none.
-- The living owners: sessions that hold the advisory lock (class $1 + partition, term), and for how many seconds the
-- server has been waiting for each: for its next statement, or for it to take the answer to the last one. 0 while a
-- statement runs, which has a timeout; null if this role may not know.
SELECT (l.classid::bigint - $1)::smallint AS partition, l.objid::bigint AS term,
    CASE WHEN a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Client' THEN 0
        ELSE extract(epoch FROM clock_timestamp() - greatest(a.query_start, a.state_change)) END::float8 AS silent
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid AND a.state <> 'disabled'
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid::bigint BETWEEN $1 AND $1 + 31
