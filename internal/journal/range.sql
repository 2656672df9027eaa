-- Events of topic $1 after offset $2: at most $3, and about $4 bytes of data but at least one. Always one row at
-- least, for the epoch. Called by Reader.Range. Locks: none.
WITH found AS (
    SELECT *, sum(octet_length(data::text)) OVER (ORDER BY "offset") - octet_length(data::text) AS before
    FROM (
        SELECT topic, "offset", epoch, id, type, key, data, headers, created_at FROM commitcast.journal
        WHERE topic = $1 AND "offset" > $2 ORDER BY "offset" LIMIT $3
    ) AS newest
)
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1),
    f.topic IS NOT NULL, coalesce(f.topic, ''), coalesce(f."offset", 0), coalesce(f.epoch, ''), coalesce(f.id, 0),
    coalesce(f.type, ''), f.key, coalesce(f.data, 'null'), f.headers, coalesce(f.created_at, now())
FROM (SELECT 1) AS always
LEFT JOIN found f ON f.before < $4
ORDER BY f."offset"
