-- Called by: topic_republish, before each piece of topic $1 that it offers. Locks: none.
-- The current epoch, the topic's head, and from where on the topic is set aside; null if it is not.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), t.head, p.parked_from
FROM commitcast.topic t
LEFT JOIN commitcast.parked p ON p.topic = t.topic
WHERE t.topic = $1
