-- Called by: Console.DeadLetters and Console.DeadLetter. Locks: none.
-- Dead letters of topic $1, redriven or not, after offset $2, at most $3; with their data if $4.
SELECT d.topic, d."offset", d.epoch, d.id, d.type, coalesce(d.key, ''), octet_length(d.data::text), d.created_at, d.error, d.attempts, d.job, d.died_at, d.redriven_at,
    CASE WHEN $4 THEN d.data::text END, CASE WHEN $4 THEN d.headers::text END
FROM commitcast.dead_letter d
WHERE d.topic = $1 AND d."offset" > $2
ORDER BY d."offset" LIMIT $3
