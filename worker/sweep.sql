-- Called by: the dispatcher, every 2.5 to 50 ms. Locks: none.
-- Partitions with unsequenced or unpublished events that no operator has paused. The scalar subquery keeps its ORDER BY, unlike an EXISTS, and so is
-- answered by the outbox's primary key.
SELECT p.id, p.term, p.seq, p.published, o.id IS NOT NULL AS waiting
FROM commitcast.partition p
CROSS JOIN LATERAL (
    SELECT (SELECT o.id FROM commitcast.outbox o WHERE o.partition = p.id AND o.id > p.floor ORDER BY o.id LIMIT 1)
) AS o(id)
WHERE p.paused_at IS NULL AND (p.published < p.seq OR o.id IS NOT NULL)
