-- Called by: a publisher, at its beginning with $2 null; then, with topics of a batch that it has read, before it skips
-- their events. What unparks a topic looks at its head afterwards, and so knows of these events. Locks: none.
-- The topics of partition $1, among $2, that are set aside; at most $3.
SELECT topic FROM commitcast.parked WHERE partition = $1 AND ($2::text[] IS NULL OR topic = ANY ($2)) LIMIT $3
