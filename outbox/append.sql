-- Adds events to the caller's transaction, in order, and returns their ids in that order.
-- Called by: Tx, in one round trip with COMMIT; Append.
-- Locks: none but the rows it inserts.
-- Invariant: ids follow the order of the arrays. Identity values are drawn after the sort.
INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
SELECT commitcast.partition_of(e.topic), e.topic, e.type, nullif(e.key, ''), e.data::json, nullif(e.headers, '')::json
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS e (topic, type, key, data, headers, n)
ORDER BY e.n
RETURNING id
