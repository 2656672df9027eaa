-- Records that an operation has begun, or tells what it came to.
-- Called by: Once, as the first statement of its transaction, at READ COMMITTED.
-- Locks: the operation's row; waits, at most 5 s, for a transaction that has written it and not ended.
-- Invariant: of all transactions with the same scope and key at most one commits with begun true.
SELECT begun, same, result::text, events FROM commitcast.begin_operation($1, $2, $3)
