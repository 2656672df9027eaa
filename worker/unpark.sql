-- Called by: topic_republish, when the stream has everything of topic $1 up to its head; what was sequenced since is
-- looked at afterwards. Locks: the topic's row in parked, its rows in dead_letter.
WITH gone AS (
    DELETE FROM commitcast.parked WHERE topic = $1
)
UPDATE commitcast.dead_letter SET redriven_at = clock_timestamp() WHERE topic = $1 AND redriven_at IS NULL
