-- Which topics of partitions $1 have got events since the seqs $2, and where their heads are. One row at least, for the epoch. Called by
-- Reader.Moved, about once a second by a broadcaster. Locks: none.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), coalesce(m.topic, ''), coalesce(m.head, 0)
FROM (SELECT) AS always LEFT JOIN (
    SELECT j.topic, max(j."offset") AS head
    FROM unnest($1::smallint[], $2::bigint[]) AS w (p, since)
    CROSS JOIN LATERAL (SELECT topic, "offset" FROM commitcast.journal WHERE partition = w.p AND seq > w.since) AS j
    GROUP BY j.topic
) AS m ON true
