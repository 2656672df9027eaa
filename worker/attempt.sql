-- Called by: topic_republish, when the stream has refused topic $1 of partition $2 from offset $3 on. $4 attempts, $5 the
-- error, $6 whether this was the last attempt, $7 the job. Locks: the topic's rows in redrive, audit and parked.
-- Invariant: the topic is set aside, whether or not it still was. After the last attempt the refused event is a dead
-- letter; those behind it stay in the journal, and retention moves them. What an operator ordered has ended with it.
WITH ended AS (
    DELETE FROM commitcast.redrive WHERE $6 AND topic = $1 RETURNING audit
), told AS (
    UPDATE commitcast.audit SET result = 'given up: ' || $5, ended_at = clock_timestamp() WHERE id IN (SELECT audit FROM ended)
), failed AS (
    INSERT INTO commitcast.parked AS p (topic, partition, parked_from, attempts, error, tried_at, died_at)
    VALUES ($1, $2, $3, $4, $5, clock_timestamp(), CASE WHEN $6 THEN clock_timestamp() END)
    ON CONFLICT (topic) DO UPDATE SET parked_from = EXCLUDED.parked_from, attempts = EXCLUDED.attempts,
        error = EXCLUDED.error, tried_at = EXCLUDED.tried_at, died_at = EXCLUDED.died_at
)
INSERT INTO commitcast.dead_letter
    (topic, "offset", epoch, partition, seq, id, type, key, data, headers, created_at, error, attempts, job)
SELECT topic, "offset", epoch, partition, seq, id, type, key, data, headers, created_at, $5, $4, $7
FROM commitcast.journal WHERE $6 AND topic = $1 AND "offset" = $3
ON CONFLICT (topic, "offset") DO UPDATE SET error = EXCLUDED.error, attempts = EXCLUDED.attempts, job = EXCLUDED.job,
    died_at = clock_timestamp(), redriven_at = NULL
