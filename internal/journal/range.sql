-- Events of topics $1, each after its offset $2: of each at most $3, and about $4 bytes of data but at least one. Always one
-- row a topic at least, in order, for the epoch. Called by Reader.Range and Reader.Ranges. Locks: none.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), q.nth,
    f.topic IS NOT NULL, coalesce(f.topic, ''), coalesce(f."offset", 0), coalesce(f.epoch, ''), coalesce(f.id, 0),
    coalesce(f.type, ''), f.key, coalesce(f.data, 'null'), f.headers, coalesce(f.created_at, now())
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS q (topic, after, nth)
LEFT JOIN LATERAL (
    SELECT *, sum(octet_length(data::text)) OVER (ORDER BY "offset") - octet_length(data::text) AS before
    FROM (
        SELECT topic, "offset", epoch, id, type, key, data, headers, created_at FROM commitcast.journal
        WHERE topic = q.topic AND "offset" > q.after ORDER BY "offset" LIMIT $3
    ) AS newest
) AS f ON f.before < $4
ORDER BY q.nth, f."offset"
