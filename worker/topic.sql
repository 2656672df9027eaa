-- Called by: a publisher whose topic has a hole in the stream; topic_republish. Locks: none.
-- Events of topic $1 from offset $2 to $3: at most $4 rows and about $5 bytes, but always one. What retention took from
-- the journal while the topic was set aside is among the dead letters.
SELECT {columns}
FROM (
    SELECT *, sum(octet_length(data::text)) OVER (ORDER BY "offset" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM (
        (SELECT {columns} FROM commitcast.journal
         WHERE topic = $1 AND "offset" BETWEEN $2 AND $3
         ORDER BY "offset" LIMIT $4)
        UNION ALL
        (SELECT topic, "offset", epoch, seq, id, type, key, data, headers, created_at, died_at FROM commitcast.dead_letter d
         WHERE topic = $1 AND "offset" BETWEEN $2 AND $3
             AND NOT EXISTS (SELECT FROM commitcast.journal j WHERE j.topic = d.topic AND j."offset" = d."offset")
         ORDER BY "offset" LIMIT $4)
    ) AS oldest
) AS sized
WHERE coalesce(before, 0) < $5
ORDER BY "offset" LIMIT $4
