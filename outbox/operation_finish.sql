-- Adds the transaction's events (append.sql, append_one.sql or append_fences.sql, as "added") and completes the operation's
-- record, in one statement.
-- Called by: Once, as the last statement of its transaction.
-- Locks: those of that statement; the operation's row is the transaction's own.
-- Invariant: the ids are in the order of the events: they were drawn in that order.
WITH added AS (
%[1]s
)
UPDATE commitcast.operation
SET events = coalesce((SELECT array_agg(id ORDER BY id) FROM added), '{}'), result = $%[4]d::text::json
WHERE scope = $%[2]d AND key = $%[3]d
RETURNING events
