-- Called by: Console.Status, to say why something is stuck. Locks: none.
-- River's jobs of ours that have failed and are to be tried again, and drains that were given up in the last hour; at most $1.
SELECT id, kind, state::text, attempt, max_attempts, scheduled_at, coalesce(errors[array_upper(errors, 1)]->>'error', ''),
    coalesce(args->>'topic', args->>'partition', '')
FROM (
    (SELECT * FROM commitcast.river_job WHERE state = 'retryable' ORDER BY scheduled_at LIMIT $1)
    UNION ALL
    (SELECT * FROM commitcast.river_job WHERE state = 'discarded' AND finalized_at > clock_timestamp() - interval '1 hour'
        AND kind IN ('outbox_drain', 'journal_upkeep') ORDER BY finalized_at DESC LIMIT $1)
) AS j WHERE kind IN ('outbox_drain', 'journal_upkeep', 'topic_republish')
