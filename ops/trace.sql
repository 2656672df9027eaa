-- Called by: Console.Trace. Locks: none.
-- One event of topic $1: offset $2 or, if that is null, event id $3 among the newest $4 of the topic. What retention has taken may be
-- among the dead letters.
SELECT e."offset", e.epoch, e.partition, e.seq, e.id, e.type, coalesce(e.key, ''), octet_length(e.data::text), e.created_at, e.sequenced_at,
    e.seq <= p.published, e.died_at, e.redriven_at, coalesce(e.headers::text, '')
FROM (
    (SELECT j."offset", j.epoch, j.partition, j.seq, j.id, j.type, j.key, j.data, j.headers, j.created_at, j.sequenced_at, NULL::timestamptz AS died_at, NULL::timestamptz AS redriven_at
     FROM commitcast.journal j WHERE j.topic = $1 AND j."offset" = $2)
    UNION ALL
    (SELECT * FROM (
        SELECT j."offset", j.epoch, j.partition, j.seq, j.id, j.type, j.key, j.data, j.headers, j.created_at, j.sequenced_at, NULL::timestamptz, NULL::timestamptz
        FROM commitcast.journal j WHERE $2::bigint IS NULL AND j.topic = $1 ORDER BY j."offset" DESC LIMIT $4) AS newest WHERE newest.id = $3)
    UNION ALL
    (SELECT d."offset", d.epoch, d.partition, d.seq, d.id, d.type, d.key, d.data, d.headers, d.created_at, NULL, d.died_at, d.redriven_at
     FROM commitcast.dead_letter d WHERE d.topic = $1 AND d."offset" = $2)
) AS e JOIN commitcast.partition p ON p.id = e.partition
ORDER BY e.sequenced_at NULLS LAST LIMIT 1
