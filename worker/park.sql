-- Called by: a publisher, in one transaction with the insertion of the topics' topic_republish jobs.
-- Locks: the rows of topics $2, in order of their names.
-- Invariant: a topic is set aside before partition.published passes an event of it that the stream lacks.
INSERT INTO commitcast.parked (topic, partition, parked_from, error)
SELECT topic, $1, first, error FROM unnest($2::text[], $3::bigint[], $4::text[]) AS refused (topic, first, error)
ORDER BY topic
ON CONFLICT (topic) DO NOTHING
