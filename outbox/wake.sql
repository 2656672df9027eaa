-- Tells workers which partitions have new events.
-- Called by: the sender of wake-ups, in a transaction of its own, after the writers' commits.
-- Locks: Postgres' own lock on the notification queue, for the moment of the commit. Nothing durable is written, so
-- the commit does not wait for the disk.
-- Invariant: none; a lost wake-up costs the time until the next sweep.
SELECT set_config('synchronous_commit', 'off', true), pg_notify('commitcast_outbox', $1)
