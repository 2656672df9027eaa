-- Called by: Console.Parked. Locks: none.
-- Topics that are set aside, in the order of their names after $1, at most $2.
SELECT p.topic, p.partition, p.parked_from, p.parked_at, p.attempts, p.error, p.tried_at, p.died_at, t.head
FROM commitcast.parked p LEFT JOIN commitcast.topic t ON t.topic = p.topic
WHERE p.topic > $1 ORDER BY p.topic LIMIT $2
