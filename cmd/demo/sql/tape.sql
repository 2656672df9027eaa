-- The newest trades of each market, oldest first.
-- Called by Exchange.Read, in the transaction of a snapshot. Locks: none.
SELECT t.market, t.version, t.trader, r.name, r.bot, t.side, t.shares, t.cost, t.after, t.at
FROM unnest($1::text[]) m (id)
CROSS JOIN LATERAL (SELECT * FROM demo.trade WHERE market = m.id ORDER BY version DESC LIMIT $2) t
JOIN demo.trader r ON r.id = t.trader
ORDER BY t.market, t.version
