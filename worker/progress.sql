-- Called by: topic_republish, when the stream has confirmed topic $1 up to before offset $2, in epoch $3. Locks: the topic's rows in
-- redrive and, if it was set aside when the job looked ($4), parked. In another epoch, what was confirmed says nothing.
WITH ordered AS (
    UPDATE commitcast.redrive SET next = $2 WHERE topic = $1 AND next < $2
        AND $3 = (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1)
)
UPDATE commitcast.parked SET parked_from = $2 WHERE topic = $1 AND parked_from < $2 AND $4
    AND $3 = (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1)
