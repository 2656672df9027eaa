-- Called by: Console.DeadHistory. Locks: none.
-- The attempts of River's job $1 that failed, the first one first.
SELECT (e->>'at')::timestamptz, (e->>'attempt')::int, coalesce(e->>'error', '')
FROM commitcast.river_job j CROSS JOIN LATERAL unnest(j.errors) WITH ORDINALITY AS u (e, n)
WHERE j.id = $1 ORDER BY n LIMIT 1000
