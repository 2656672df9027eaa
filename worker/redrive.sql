-- Called by: Redrive, in one transaction with the insertion of the topics' jobs. Locks: the rows of those topics.
-- Makes topics that were given up ($1, or all of them if null; at most $2) wait for a job again.
UPDATE commitcast.parked SET died_at = NULL, attempts = 0
WHERE topic IN (
    SELECT topic FROM commitcast.parked
    WHERE died_at IS NOT NULL AND ($1::text[] IS NULL OR topic = ANY ($1))
    ORDER BY topic LIMIT $2 FOR UPDATE
)
RETURNING topic
