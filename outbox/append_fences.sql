-- Adds events to the caller's transaction, in order, with revocations and restorations among them, and returns their ids in
-- that order.
-- Called by: Tx, in one round trip with COMMIT; Append's kin Revoke and Restore.
-- Locks: the revocations' rows, in order of topic and subject.
-- Invariant: ids follow the order of the arrays; of two changes of one subject's access to a topic the later one has the higher id.
SELECT id FROM commitcast.append_fences($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS id
