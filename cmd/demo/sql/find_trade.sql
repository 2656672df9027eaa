-- The trade that an earlier attempt of the same order made, if it did.
-- Called by Exchange.Trade, fourth. Locks: none.
SELECT market, version, side, shares, cost, after FROM demo.trade WHERE trader = $1 AND request = $2
