-- Called by: Console.Discard. Locks: the rows it removes.
-- Removes the dead letters of topic $1 with the offsets $2, each as it was seen: dead since $3. Those of which the journal has nothing more
-- and that nobody has published are the last that there is of an event.
DELETE FROM commitcast.dead_letter d USING unnest($2::bigint[], $3::timestamptz[]) AS seen (at, died)
WHERE d.topic = $1 AND d."offset" = seen.at AND d.died_at = seen.died
