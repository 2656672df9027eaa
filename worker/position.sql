-- Called by: topic_republish, before each piece of topic $1 that it offers. Locks: none.
-- The current epoch, the topic's head, from where on the topic is set aside, and what an operator has ordered to be published
-- again: from and to; null if it is not.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), t.head, p.parked_from, r.next, r.last
FROM commitcast.topic t
LEFT JOIN commitcast.parked p ON p.topic = t.topic
LEFT JOIN commitcast.redrive r ON r.topic = t.topic
WHERE t.topic = $1
