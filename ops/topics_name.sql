-- Called by: Console.Topics. Locks: none.
-- Topics after $1 and before $2, in the order of their names, at most $3. Lag is counted up to $4, and only where the partition has any.
SELECT t.topic, t.partition, t.head,
    CASE WHEN p.seq > p.published THEN (SELECT count(*) FROM (
        SELECT j.seq FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" DESC LIMIT $4) AS newest WHERE newest.seq > p.published)
        ELSE 0 END,
    0::bigint, 0::float8, k.parked_from, k.died_at,
    (SELECT j.created_at FROM commitcast.journal j WHERE j.topic = t.topic AND j."offset" = t.head)
FROM (SELECT topic, partition, head FROM commitcast.topic WHERE topic > $1 AND topic < $2 ORDER BY topic LIMIT $3) AS t
JOIN commitcast.partition p ON p.id = t.partition
LEFT JOIN LATERAL (SELECT parked_from, died_at FROM commitcast.parked k WHERE k.topic = t.topic LIMIT 1) AS k ON true
ORDER BY t.topic
