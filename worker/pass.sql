-- Called by: a worker that has found the jobs $1 to be orphans. Locks: none.
-- The topics of these that no other job looks after, each with the term after its newest. An orphan that was passed once
-- is not passed again while River still says that it runs, unless its topic has been set aside anew.
SELECT j.topic, max(j.term) + 1 FROM (
    SELECT args->>'topic' AS topic, coalesce((args->>'term')::bigint, 0) AS term, id = ANY ($1) AS orphan,
        state IN ('completed', 'cancelled', 'discarded') AS ended
    FROM commitcast.river_job
    WHERE kind = 'topic_republish'
        AND args->>'topic' IN (SELECT args->>'topic' FROM commitcast.river_job WHERE id = ANY ($1))) j
GROUP BY j.topic
HAVING bool_and(j.orphan OR j.ended) AND ((array_agg(j.orphan ORDER BY j.term DESC))[1]
    OR EXISTS (SELECT FROM commitcast.parked p WHERE p.topic = j.topic AND p.died_at IS NULL))
