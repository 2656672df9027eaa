-- Where topics stand, whether cursors are valid, and whether subjects may read, in one read. $1 topics, $2 epochs ('' asks
-- for the head only), $3 offsets, each such three once: a crowd asks the same. $4 which of them, from 1 on, and $5 subjects ('':
-- nobody), one of each for each question. One row a question, in order. Called by Reader.Positions.
-- Locks: none. Invariant: what revoked a subject at an offset up to head is in the answer, since that committed before it
-- was sequenced.
WITH place AS MATERIALIZED (
    SELECT c.nth, c.topic, coalesce(t.head, 0) AS head,
        CASE WHEN c.epoch <> '' THEN coalesce(commitcast.cursor_reason(c.topic, c.epoch, c.at), '') ELSE '' END AS reason
    FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS c (topic, epoch, at, nth)
    LEFT JOIN commitcast.topic t ON t.topic = c.topic
)
SELECT (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1), p.head, p.reason, coalesce(r.revoked, false), coalesce(r.event_id, 0)
FROM unnest($4::bigint[], $5::text[]) WITH ORDINALITY AS q (place, subject, nth)
JOIN place p ON p.nth = q.place
LEFT JOIN commitcast.revocation r ON r.topic = p.topic AND r.subject = q.subject
ORDER BY q.nth
