-- The exchange: markets, traders, positions, trades. Its own schema, beside commitcast's.
-- Called by openExchange, once, in one transaction. Locks: an advisory lock, so that two demos may start together.
-- Invariants, all of them checked by tests on a busy exchange:
--   market.yes = seed_yes + sum(position.yes), and the same for no: no share appears or vanishes;
--   sum(trader.balance) + sum(market.pool) = sum(trader.deposit): no money appears or vanishes;
--   market.version counts its trades: 1, 2, 3 … without a hole;
--   no trade moved past what its author had allowed (the check on trade).
-- Money, shares and prices are integers, in millionths.

SELECT pg_advisory_xact_lock(hashtext('demo.schema'));

CREATE SCHEMA IF NOT EXISTS demo;

CREATE TABLE IF NOT EXISTS demo.market (
    id        text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-z0-9-]{1,40}$'),
    ordinal   integer NOT NULL,                        -- the order in which markets are shown
    title     text NOT NULL,                           -- the question in a few words, for lists
    question  text NOT NULL,
    category  text NOT NULL,
    rules     text NOT NULL,                           -- when the answer is yes
    liquidity bigint NOT NULL CHECK (liquidity > 0),
    seed_yes  bigint NOT NULL CHECK (seed_yes >= 0),   -- the maker's own shares: they set the price to begin with
    seed_no   bigint NOT NULL CHECK (seed_no >= 0),
    yes       bigint NOT NULL CHECK (yes >= seed_yes),
    no        bigint NOT NULL CHECK (no >= seed_no),
    price     bigint NOT NULL CHECK (price BETWEEN 10000 AND 990000),   -- of yes; that of no is 1000000 less it
    version   bigint NOT NULL DEFAULT 0,
    pool      bigint NOT NULL DEFAULT 0,               -- what traders have paid in, less what they were paid
    volume    bigint NOT NULL DEFAULT 0,               -- money moved, either way
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS demo.trader (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    bot        boolean NOT NULL,
    secret     bytea UNIQUE,                           -- SHA-256 of a person's cookie; bots have none
    deposit    bigint NOT NULL CHECK (deposit >= 0),
    balance    bigint NOT NULL CHECK (balance >= 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX IF NOT EXISTS trader_bot_name ON demo.trader (name) WHERE bot;

CREATE TABLE IF NOT EXISTS demo.position (
    trader bigint NOT NULL REFERENCES demo.trader,
    market text COLLATE "C" NOT NULL REFERENCES demo.market,
    yes    bigint NOT NULL CHECK (yes >= 0),
    no     bigint NOT NULL CHECK (no >= 0),
    spent  bigint NOT NULL,                            -- money paid in this market, less money received
    PRIMARY KEY (trader, market)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS demo.trade (
    market    text COLLATE "C" NOT NULL REFERENCES demo.market,
    version   bigint NOT NULL,
    trader    bigint NOT NULL REFERENCES demo.trader,
    side      text NOT NULL CHECK (side IN ('yes', 'no')),
    shares    bigint NOT NULL CHECK (shares <> 0),     -- above zero: bought; below: sold
    cost      bigint NOT NULL CHECK (sign(cost) IN (0, sign(shares))),
    seen      bigint NOT NULL,                         -- the price of the side that the author saw
    tolerance bigint NOT NULL CHECK (tolerance >= 0),  -- how far it may have moved against the author
    before    bigint NOT NULL,                         -- the price of the side that the trade met
    after     bigint NOT NULL,                         -- and the one that it left
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (market, version),
    CONSTRAINT trade_within_tolerance CHECK ((before - seen) * sign(shares) <= tolerance)
);

-- One row a second and market: what a chart is drawn from.
CREATE TABLE IF NOT EXISTS demo.tick (
    market text COLLATE "C" NOT NULL REFERENCES demo.market,
    second bigint NOT NULL,                            -- since 1970
    price  bigint NOT NULL,                            -- of yes, at the end of the second
    PRIMARY KEY (market, second)
) WITH (fillfactor = 50);
