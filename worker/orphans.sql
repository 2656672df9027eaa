-- Called by: every worker, about once a second. Locks: none.
-- The topic_republish jobs that run although no living session holds their lock (class $1, id): their process is gone, or
-- River has not yet written down that they ended, or they have only just begun. So the caller looks twice.
SELECT id, (extract(epoch FROM attempted_at) * 1000000)::bigint FROM commitcast.river_job j
WHERE state = 'running' AND queue = $2 AND NOT EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.classid::bigint = $1 AND l.objid::bigint = j.id & 2147483647
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
