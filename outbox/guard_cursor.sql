-- The topic's head, and whether events of it wait to be sequenced (or too many of its partition do to look at).
-- Called by: Guard.Cursor, in the transaction of an action, after guard_history.sql.
-- Locks: none; the caller holds what keeps other writers of the topic away.
-- Invariant: nothing that committed before this statement began is overlooked: at READ COMMITTED it sees what committed while
-- the caller waited for its lock.
SELECT
    coalesce((SELECT head FROM commitcast.topic WHERE topic = $1), 0),
    (SELECT count(*) > $2 OR bool_or(topic = $1) FROM (
        SELECT topic FROM commitcast.outbox
        WHERE partition = commitcast.partition_of($1)
            AND id > (SELECT floor FROM commitcast.partition WHERE id = commitcast.partition_of($1))
        ORDER BY id
        LIMIT $2 + 1
    ) o)
