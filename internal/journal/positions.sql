-- Where topics stand, whether cursors are valid, and whether subjects may read, in one read. $1 topics, $2 epochs ('' asks
-- for the head only), $3 offsets, each such three once: a crowd asks the same. $4 which of them, from 1 on, and $5 subjects ('':
-- nobody), one of each for each question. One row a question, in order. Called by Reader.Positions.
-- Locks: none. Invariant: what revoked a subject at an offset up to head is in the answer, since that committed before it
-- was sequenced.
-- Nearly all cursors are of the newest epoch. No row is of a later one, so that only what follows them is looked for, here: to call
-- cursor_reason for each takes four times as long. The scalar subquery is answered by the leaves' indexes; an EXISTS may read them all.
-- The arrays come out of subqueries, so that Postgres does not know how long they are, and keeps one plan: to plan for one question takes
-- as long as to answer it.
WITH newest AS (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1),
place AS MATERIALIZED (
    SELECT c.nth, c.topic, coalesce(t.head, 0) AS head,
        CASE WHEN c.epoch = '' THEN ''
            WHEN c.epoch <> newest.name THEN coalesce(commitcast.cursor_reason(c.topic, c.epoch, c.at), '')
            WHEN c.at > coalesce(t.head, 0) THEN 'ahead'
            WHEN c.at = coalesce(t.head, 0) THEN ''
            WHEN (SELECT true FROM commitcast.journal j WHERE j.topic = c.topic AND j."offset" = c.at + 1 LIMIT 1) THEN ''
            ELSE 'trimmed' END AS reason
    FROM unnest((SELECT $1::text[]), (SELECT $2::text[]), (SELECT $3::bigint[])) WITH ORDINALITY AS c (topic, epoch, at, nth)
    CROSS JOIN newest
    LEFT JOIN commitcast.topic t ON t.topic = c.topic
)
SELECT (SELECT name FROM newest), p.head, p.reason, coalesce(r.revoked, false), coalesce(r.event_id, 0)
FROM unnest((SELECT $4::bigint[]), (SELECT $5::text[])) WITH ORDINALITY AS q (place, subject, nth)
JOIN place p ON p.nth = q.place
LEFT JOIN commitcast.revocation r ON r.topic = p.topic AND r.subject = q.subject
ORDER BY q.nth
