-- Called by: a publisher whose topic lags behind in the stream. Locks: none.
-- Events of topic $1 from offset $2 to $3: at most $4 rows and about $5 bytes, but always one.
SELECT {columns}
FROM (
    SELECT *, sum(octet_length(data::text)) OVER (ORDER BY "offset" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM (
        SELECT {columns} FROM commitcast.journal
        WHERE topic = $1 AND "offset" BETWEEN $2 AND $3
        ORDER BY "offset" LIMIT $4
    ) AS oldest
) AS sized
WHERE coalesce(before, 0) < $5
ORDER BY "offset"
