-- Called by: Console.Status. Locks: none.
-- The database itself. Counts stop at $1.
SELECT current_setting('server_version'), pg_is_in_recovery(), clock_timestamp(),
    coalesce((SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), ''),
    (SELECT began_at FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1),
    coalesce((SELECT reason FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), ''),
    (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM commitcast.outbox_id_seq),
    (SELECT count(*) FROM (SELECT FROM commitcast.parked ORDER BY topic LIMIT $1) AS p),
    (SELECT count(*) FROM (SELECT FROM commitcast.parked WHERE died_at IS NOT NULL ORDER BY topic LIMIT $1) AS p),
    (SELECT count(*) FROM (SELECT FROM commitcast.dead_letter WHERE redriven_at IS NULL ORDER BY died_at LIMIT $1) AS d),
    (SELECT count(*) FROM (SELECT FROM commitcast.redrive ORDER BY topic LIMIT $1) AS r),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::int,
    -- Who has appended and not ended: the floor waits for them, and their events are not there yet.
    coalesce((SELECT extract(epoch FROM clock_timestamp() - min(a.xact_start))::float8 FROM pg_stat_activity a WHERE a.pid IN (
        SELECT l.pid FROM pg_locks l WHERE l.locktype = 'relation' AND l.relation = 'commitcast.outbox'::regclass
            AND l.mode = 'RowExclusiveLock' AND l.granted)), 0),
    -- Which of them is the oldest: when it began is hidden from other roles, how old its xid is, is not.
    coalesce((SELECT 'pid ' || a.pid || ', role ' || a.usename || coalesce(', ' || nullif(a.application_name, ''), '') || coalesce(', ' || a.state, '')
        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_locks x ON x.pid = l.pid AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock'
        WHERE l.locktype = 'relation' AND l.relation = 'commitcast.outbox'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
        ORDER BY age(x.transactionid) DESC LIMIT 1), ''),
    coalesce((SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float8 FROM pg_stat_activity
        WHERE xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()), 0)
