-- Called by: journal_upkeep. Locks: none.
-- The journal's leaves, oldest first: attached to it or not, past retention or not; with what they take on disk.
SELECT c.relname, i.inhrelid IS NOT NULL,
    coalesce(obj_description(c.oid, 'pg_class') = 'commitcast: past retention', false), coalesce(pg_total_relation_size(c.oid), 0)
FROM pg_class c
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'commitcast.journal'::regclass
WHERE c.relnamespace = 'commitcast'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^journal_[0-9]{8}$'
ORDER BY c.relname
