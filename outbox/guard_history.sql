-- Why a cursor does not belong to this database's history; NULL if it does.
-- Called by: Guard, in the transaction of an action.
-- Locks: none.
SELECT commitcast.cursor_reason($1, $2, $3)
