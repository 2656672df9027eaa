-- Called by: Console.Topic. Locks: none.
-- Where topic $1 stands. Events that are not published, that wait, and dead letters are counted up to $2.
SELECT t.topic, t.partition, t.head, t.head_epoch, p.paused_at,
    coalesce((SELECT j."offset" FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" LIMIT 1), 0),
    (SELECT j.created_at FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" LIMIT 1),
    (SELECT j.created_at FROM commitcast.journal j WHERE j.topic = t.topic AND j."offset" = t.head),
    CASE WHEN p.seq > p.published THEN (SELECT count(*) FROM (
        SELECT j.seq FROM commitcast.journal j WHERE j.topic = t.topic ORDER BY j."offset" DESC LIMIT $2) AS newest WHERE newest.seq > p.published)
        ELSE 0 END,
    (SELECT count(*) FROM (SELECT o.topic FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT $2) AS w WHERE w.topic = t.topic),
    (SELECT count(*) FROM (SELECT FROM commitcast.dead_letter d WHERE d.topic = t.topic AND d.redriven_at IS NULL ORDER BY d."offset" LIMIT $2) AS d)
FROM commitcast.topic t JOIN commitcast.partition p ON p.id = t.partition
WHERE t.topic = $1
