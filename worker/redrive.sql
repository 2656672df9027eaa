-- Called by: Redrive. Locks: as commitcast.redrive_topics, which see.
SELECT topic FROM commitcast.redrive_topics($1, $2) AS topic
