-- Called by: Console.Topics. Locks: none.
-- Topics with events that are not sequenced, not published, or held back because the topic is set aside: those with the most first,
-- $1 of them after ($2, $4), a lag and a name; a null lag is the beginning. Of each partition the oldest $3 of each kind are looked at, and at most that many topics that are set aside.
WITH waiting AS (
    SELECT w.topic, count(*) AS n, min(w.created_at) AS since
    FROM commitcast.partition p CROSS JOIN LATERAL (
        SELECT o.topic, o.created_at FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT $3) AS w
    GROUP BY w.topic
), unpublished AS (
    SELECT u.topic, count(*) AS n, min(u.created_at) AS since
    FROM (SELECT id, published FROM commitcast.partition WHERE seq > published) AS p CROSS JOIN LATERAL (
        SELECT j.topic, j.created_at FROM commitcast.journal j WHERE j.partition = p.id AND j.seq > p.published ORDER BY j.seq LIMIT $3) AS u
    GROUP BY u.topic
), aside AS (
    SELECT k.topic, k.parked_from, k.died_at, k.parked_at,
        greatest(0, (SELECT t.head FROM commitcast.topic t WHERE t.topic = k.topic) - k.parked_from + 1) AS n
    FROM (SELECT * FROM commitcast.parked ORDER BY topic LIMIT $3) AS k
), lag AS (
    SELECT topic, coalesce(w.n, 0) AS waiting, greatest(coalesce(u.n, 0), coalesce(a.n, 0)) AS unpublished,
        least(w.since, u.since, a.parked_at) AS since, a.parked_from, a.died_at
    FROM waiting w FULL JOIN unpublished u USING (topic) FULL JOIN aside a USING (topic)
), listed AS (
    SELECT * FROM lag WHERE $2::bigint IS NULL OR (-(waiting + unpublished), topic) > (-$2::bigint, $4::text COLLATE "C")
    ORDER BY waiting + unpublished DESC, topic LIMIT $1
)
SELECT l.topic, commitcast.partition_of(l.topic), coalesce((SELECT t.head FROM commitcast.topic t WHERE t.topic = l.topic), 0), l.unpublished, l.waiting,
    coalesce(extract(epoch FROM clock_timestamp() - l.since)::float8, 0), l.parked_from, l.died_at, NULL::timestamptz
FROM listed l ORDER BY l.waiting + l.unpublished DESC, l.topic
