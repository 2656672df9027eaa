-- A trade, in one statement: the market moves, money and shares change hands, the trade is written down.
-- Called by Exchange.Trade after its decision, under the locks of lock_market and lock_trader.
-- Invariant: what the trader pays is what the pool takes; the shares of the position are the shares of the market.
WITH moved AS (
    UPDATE demo.market SET yes = yes + CASE WHEN @side = 'yes' THEN @shares::bigint ELSE 0 END,
                           no = no + CASE WHEN @side = 'no' THEN @shares::bigint ELSE 0 END,
                           price = @price, version = @version, pool = pool + @cost, volume = volume + abs(@cost::bigint)
    WHERE id = @market
), paid AS (
    UPDATE demo.trader SET balance = balance - @cost WHERE id = @trader
), held AS (
    INSERT INTO demo.position AS p (trader, market, yes, no, spent)
    VALUES (@trader, @market, @held_yes, @held_no, @spent)
    ON CONFLICT (trader, market) DO UPDATE SET yes = EXCLUDED.yes, no = EXCLUDED.no, spent = EXCLUDED.spent
), ticked AS (
    INSERT INTO demo.tick (market, second, price)
    VALUES (@market, floor(extract(epoch FROM clock_timestamp())), @price)
    ON CONFLICT (market, second) DO UPDATE SET price = EXCLUDED.price
)
INSERT INTO demo.trade (market, version, trader, side, shares, cost, seen, tolerance, before, after)
VALUES (@market, @version, @trader, @side, @shares, @cost, @seen, @tolerance, @before, @after)
