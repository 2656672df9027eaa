-- Called by: the sequencer, pipelined after sequence(). Locks: none.
-- Events of partitions $1, each after its seq in $2: at most as many rows as $4 says and about $5 bytes, but always one.
-- $3 has the sequenced_at of those seqs, below which no leaf of the journal needs a look. Each partition's come by seq.
SELECT w.p, r.*
FROM unnest($1::smallint[], $2::bigint[], $3::timestamptz[], $4::bigint[]) AS w (p, after, since, most)
CROSS JOIN LATERAL (
    SELECT {columns}
    FROM (
        SELECT *, sum(octet_length(data::text)) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM (
            SELECT {columns} FROM commitcast.journal
            WHERE partition = w.p AND seq > w.after AND sequenced_at >= w.since
            ORDER BY seq LIMIT w.most
        ) AS newest
    ) AS sized
    WHERE coalesce(before, 0) < $5
    ORDER BY seq
) AS r
