-- Where topics stand, and whether cursors are valid, in one read. $1 topics, $2 epochs ('' asks for the head only),
-- $3 offsets. One row a question, in order. Called by Reader.Positions. Locks: none.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1),
    coalesce(t.head, 0),
    CASE WHEN q.epoch <> '' THEN coalesce(commitcast.cursor_reason(q.topic, q.epoch, q.at), '') ELSE '' END
FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS q (topic, epoch, at, nth)
LEFT JOIN commitcast.topic t ON t.topic = q.topic
ORDER BY q.nth
