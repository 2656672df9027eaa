-- Called by: a drain, pipelined after sequence(). Locks: none.
-- Events of partition $1 after seq $2: at most $4 rows and about $5 bytes, but always one. $3 is the sequenced_at of
-- seq $2, below which no leaf of the journal needs a look.
SELECT {columns}
FROM (
    SELECT *, sum(octet_length(data::text)) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM (
        SELECT {columns} FROM commitcast.journal
        WHERE partition = $1 AND seq > $2 AND sequenced_at >= $3
        ORDER BY seq LIMIT $4
    ) AS newest
) AS sized
WHERE coalesce(before, 0) < $5
ORDER BY seq
