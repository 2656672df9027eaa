-- Where topics stand in the caller's snapshot: for each the head with its epoch, the ids of events that are visible but
-- not sequenced, whether there are more of these than were looked for, and whether any was taken in by a server
-- process that no visible epoch names. Every row also holds the current epoch.
-- Called by: Snapshot, as the first statement of a REPEATABLE READ transaction. Works on a replica.
-- Locks: none.
-- Invariant: an event of the topic is in the caller's snapshot iff its offset is at most head or its id is pending.
SELECT
    (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1) AS current,
    t.head,
    t.head_epoch,
    p.ids,
    p.scanned > $3 OR coalesce(array_length(p.ids, 1), 0) > $2 AS too_many,
    p.unborn
FROM unnest($1::text[]) WITH ORDINALITY AS want (name, n)
CROSS JOIN LATERAL (SELECT commitcast.partition_of(want.name) AS id) AS part
LEFT JOIN commitcast.topic t ON t.topic = want.name
CROSS JOIN LATERAL (
    SELECT
        count(*) AS scanned,
        array_agg(o.id ORDER BY o.id) FILTER (WHERE o.topic = want.name) AS ids,
        bool_or(o.topic = want.name AND NOT EXISTS (SELECT FROM commitcast.epoch e WHERE e.born = o.born)) AS unborn
    FROM (
        SELECT id, topic, born FROM commitcast.outbox
        WHERE partition = part.id AND id > (SELECT floor FROM commitcast.partition f WHERE f.id = part.id)
        ORDER BY id
        LIMIT $3 + 1
    ) o
) p
ORDER BY want.n
