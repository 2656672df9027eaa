-- The markets as they stand, and what one trader (0: nobody) holds in them.
-- Called by Exchange.Read, in the transaction of a snapshot. Locks: none.
SELECT m.id, m.title, m.question, m.category, m.rules, m.liquidity, m.yes, m.no, m.price, m.version, m.volume, m.opened_at,
       coalesce(p.yes, 0), coalesce(p.no, 0), coalesce(p.spent, 0)
FROM demo.market m LEFT JOIN demo.position p ON p.market = m.id AND p.trader = $2
WHERE m.id = ANY ($1)
ORDER BY m.ordinal
