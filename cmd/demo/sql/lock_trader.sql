-- The author of a trade, locked.
-- Called by Exchange.Trade, second. Locks: the trader row, after the market row.
SELECT name, bot, balance FROM demo.trader WHERE id = $1 FOR UPDATE
