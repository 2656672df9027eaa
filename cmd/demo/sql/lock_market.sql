-- The market that a trade is about, locked: whoever waits here decides on the price that the trade before left.
-- Called by Exchange.Trade, first. Locks: the market row, before the trader row; a trade locks one of each.
SELECT liquidity, yes, no, price, version FROM demo.market WHERE id = $1 FOR UPDATE
