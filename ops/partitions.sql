-- Called by: Console.Status. Locks: none.
-- Where each partition stands: what waits in the outbox (counted up to $1), since when, and since when the first unpublished
-- event has been there, in seconds by the database's clock.
SELECT p.id, p.seq, p.published, p.term, p.paused_at, coalesce(p.paused_by, ''), coalesce(p.paused_why, ''),
    (SELECT count(*) FROM (SELECT FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT $1) AS waiting),
    coalesce((SELECT extract(epoch FROM clock_timestamp() - o.created_at)::float8
        FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT 1), 0),
    coalesce((SELECT extract(epoch FROM clock_timestamp() - j.created_at)::float8
        FROM commitcast.journal j WHERE p.seq > p.published AND j.partition = p.id AND j.seq > p.published ORDER BY j.seq LIMIT 1), 0)
FROM commitcast.partition p ORDER BY p.id
