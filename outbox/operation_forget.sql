-- Removes operations older than an interval, at most so many, the oldest first.
-- Called by: Once, now and then, after its commit; ForgetOperations.
-- Locks: the rows it removes; skips those that others hold.
SELECT commitcast.forget_operations($1, $2)
