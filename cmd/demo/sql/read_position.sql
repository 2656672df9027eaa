-- What the author holds in the market. The lock on the trader row keeps it still.
-- Called by Exchange.Trade, third. Locks: none.
SELECT yes, no, spent FROM demo.position WHERE trader = $1 AND market = $2
