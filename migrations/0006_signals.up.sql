-- What tells how this is doing: the canary, a small event every second by which every node sees that the whole way works.

-- One row: the newest event of the canary. Where it stands is where the next is allowed, so any number of nodes that would
-- write it write one a second together.
CREATE TABLE commitcast.canary (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    n  bigint NOT NULL DEFAULT 0,                  -- 1, 2, 3 … in the order of commits, without a hole
    at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);                          -- it is updated in place
INSERT INTO commitcast.canary DEFAULT VALUES;

-- sing: appends an event of the topic commitcast/canary, unless there is one that is younger than 950 ms, or somebody is
-- at it. written is its number, null if it was not for us; newest and newest_at say which is the newest that is committed, or now
-- written; clock is this server's. 950 ms and not a second, since a node that asks every second must not find itself too early.
-- Called by nodes with --canary, about every second. Locks: the row of canary, which nobody waits for.
-- Invariant: n is raised and the event is appended in one transaction, under the row's lock: so numbers, ids and commits have one
-- order, and a number that does not arrive was lost.
CREATE FUNCTION commitcast.sing(OUT written bigint, OUT newest bigint, OUT newest_at timestamptz, OUT clock timestamptz)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    clock := clock_timestamp();
    UPDATE commitcast.canary AS c SET n = c.n + 1, at = clock
    WHERE c.id = (SELECT free.id FROM commitcast.canary free
        WHERE free.at NOT BETWEEN clock - interval '950 ms' AND clock FOR UPDATE SKIP LOCKED)
    RETURNING c.n INTO written;
    IF FOUND THEN
        INSERT INTO commitcast.outbox (partition, topic, type, data)
        VALUES (commitcast.partition_of('commitcast/canary'), 'commitcast/canary', 'canary', json_build_object('n', written));
    END IF;
    SELECT c.n, c.at INTO newest, newest_at FROM commitcast.canary c;
    clock := clock_timestamp();
END $$;

REVOKE ALL ON commitcast.canary FROM PUBLIC;
REVOKE ALL ON FUNCTION commitcast.sing() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION commitcast.sing() TO commitcast_reader;

-- Workers tell how old what waits is.
GRANT SELECT (created_at) ON commitcast.outbox TO commitcast_worker;
