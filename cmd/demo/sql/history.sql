-- What a chart is drawn from: the price at the end of each second of the last minute, and of each five seconds of the
-- quarter of an hour before.
-- Called by Exchange.Read, in the transaction of a snapshot. Locks: none.
WITH recent AS (
    SELECT market, second, price, extract(epoch FROM clock_timestamp())::bigint - second AS age
    FROM demo.tick
    WHERE market = ANY ($1) AND second > extract(epoch FROM clock_timestamp())::bigint - 960
)
SELECT DISTINCT ON (market, bucket) market, second, price
FROM recent, LATERAL (SELECT CASE WHEN age < 60 THEN second ELSE second / 5 * 5 END) b (bucket)
ORDER BY market, bucket, second DESC
