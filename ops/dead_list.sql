-- Called by: Console.DeadLetters. Locks: none.
-- Dead letters that wait for somebody, the newest first: those before ($1, $2, $3), at most $4.
SELECT d.topic, d."offset", d.epoch, d.id, d.type, coalesce(d.key, ''), octet_length(d.data::text), d.created_at, d.error, d.attempts, d.job, d.died_at, d.redriven_at,
    NULL::text, NULL::text
FROM commitcast.dead_letter d
WHERE d.redriven_at IS NULL AND (d.died_at, d.topic, d."offset") < ($1::timestamptz, $2::text, $3::bigint)
ORDER BY d.died_at DESC, d.topic DESC, d."offset" DESC LIMIT $4
