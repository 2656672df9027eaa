-- Where topics stand, whether cursors are valid, and whether subjects may read, in one read. $1 topics, $2 epochs ('' asks
-- for the head only), $3 offsets, $4 subjects ('': nobody). One row a question, in order. Called by Reader.Positions.
-- Locks: none. Invariant: what revoked a subject at an offset up to head is in the answer, since that committed before it
-- was sequenced.
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1),
    coalesce(t.head, 0),
    CASE WHEN q.epoch <> '' THEN coalesce(commitcast.cursor_reason(q.topic, q.epoch, q.at), '') ELSE '' END,
    coalesce(r.revoked, false),
    coalesce(r.event_id, 0)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) WITH ORDINALITY AS q (topic, epoch, at, subject, nth)
LEFT JOIN commitcast.topic t ON t.topic = q.topic
LEFT JOIN commitcast.revocation r ON r.topic = q.topic AND r.subject = q.subject
ORDER BY q.nth
