-- Called by: topic_republish, when the stream has everything of topic $1 up to its head; what was sequenced since is
-- looked at afterwards. Locks: the topic's rows in redrive, audit, parked and dead_letter.
-- What an operator has ordered from it ends with that, if offset $2 has passed it. $3: the topic was set aside when the job looked.
WITH ended AS (
    DELETE FROM commitcast.redrive WHERE topic = $1 AND last < $2 RETURNING audit
), told AS (
    UPDATE commitcast.audit SET result = 'done', ended_at = clock_timestamp() WHERE id IN (SELECT audit FROM ended)
), gone AS (
    DELETE FROM commitcast.parked WHERE topic = $1 AND $3
)
UPDATE commitcast.dead_letter SET redriven_at = clock_timestamp() WHERE topic = $1 AND redriven_at IS NULL
