-- Roles: what a writer, a worker, a reader (a broadcaster) and an operator may do, and nobody else.
--
-- The four are NOLOGIN: a deployment grants them to the roles that its processes log in as (docs/operations.md, "Roles").
-- Roles belong to the whole cluster, so they may be there already, made by the migration of another database at this very
-- moment, or by an administrator.
--
-- Whoever adds a table or a function grants it in the same migration; TestEveryObjectIsDecided is red until then. A function
-- that writes for a role that may not is SECURITY DEFINER with a search_path of its own; CREATE OR REPLACE has to repeat both.

DO $$
DECLARE
    name text;
    missing text[] := '{}';
BEGIN
    FOREACH name IN ARRAY ARRAY['commitcast_writer', 'commitcast_worker', 'commitcast_reader', 'commitcast_operator'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = name);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;    -- somebody was faster
            WHEN insufficient_privilege THEN missing := missing || format('CREATE ROLE %I NOLOGIN;', name);
        END;
    END LOOP;
    IF missing <> '{}' THEN
        RAISE EXCEPTION 'the role % may not create roles; let an administrator run this first, once for all databases of the cluster: %',
            quote_ident(current_user), array_to_string(missing, ' ') USING ERRCODE = '42501';
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------
-- Nothing for the public. It had the right to execute each function, but no way into the schema.

REVOKE ALL ON SCHEMA commitcast FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA commitcast FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA commitcast FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA commitcast FROM PUBLIC;
GRANT USAGE ON SCHEMA commitcast TO commitcast_writer, commitcast_worker, commitcast_reader, commitcast_operator;

-- settle_grants: what no migration can say: the rights to River's tables, which River's own migrations make, and to those
-- that somebody else may make in this schema. Nothing for the public; operators read everything, also leaves of the journal
-- that are detached.
-- Called by migrate, after River's migrations. Locks: none that anybody waits for.
CREATE FUNCTION commitcast.settle_grants() RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT oid::regclass AS name, relkind, relname FROM pg_class
        WHERE relnamespace = 'commitcast'::regnamespace AND relkind IN ('r', 'S') AND relname LIKE 'river\_%' LOOP
        IF r.relkind = 'S' THEN
            EXECUTE format('GRANT USAGE ON SEQUENCE %s TO commitcast_worker', r.name);
        ELSIF r.relname = 'river_migration' THEN
            EXECUTE format('GRANT SELECT ON %s TO commitcast_writer, commitcast_worker, commitcast_reader', r.name);
        ELSE
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO commitcast_worker', r.name);
        END IF;
    END LOOP;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA commitcast FROM PUBLIC;
    FOR r IN SELECT oid::regprocedure AS name FROM pg_proc
        WHERE pronamespace = 'commitcast'::regnamespace AND proname LIKE 'river\_%' LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO commitcast_worker', r.name);
    END LOOP;
    GRANT SELECT ON ALL TABLES IN SCHEMA commitcast TO commitcast_operator;
    GRANT SELECT ON ALL SEQUENCES IN SCHEMA commitcast TO commitcast_operator;
END $$;
REVOKE ALL ON FUNCTION commitcast.settle_grants() FROM PUBLIC;
SELECT commitcast.settle_grants();

-- Tables that come later, leaves of the journal among them, which ensure_leaves makes for the owner.
ALTER DEFAULT PRIVILEGES IN SCHEMA commitcast GRANT SELECT ON TABLES TO commitcast_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA commitcast GRANT SELECT ON SEQUENCES TO commitcast_operator;

-- Who starts looks whether the schema fits.
GRANT SELECT ON commitcast.migration TO commitcast_writer, commitcast_worker, commitcast_reader;

-- ---------------------------------------------------------------------------------------------------------------
-- Writers append, and read where topics stand: of the journal and of others' unsequenced events what a cursor is checked
-- by, never what they say.

GRANT INSERT (partition, topic, type, key, data, headers), SELECT (id, partition, topic, born) ON commitcast.outbox TO commitcast_writer;
GRANT SELECT (ordinal, name, born) ON commitcast.epoch TO commitcast_writer;
GRANT SELECT (id, floor) ON commitcast.partition TO commitcast_writer;
GRANT SELECT ON commitcast.topic TO commitcast_writer;
GRANT SELECT (topic, "offset", epoch) ON commitcast.journal TO commitcast_writer;
GRANT SELECT, INSERT (scope, key, fingerprint), UPDATE (result, events) ON commitcast.operation TO commitcast_writer;
GRANT EXECUTE ON FUNCTION commitcast.append(text, text, json, text, json) TO commitcast_writer;
GRANT EXECUTE ON FUNCTION commitcast.partition_of(text) TO commitcast_writer, commitcast_operator;
GRANT EXECUTE ON FUNCTION commitcast.check_event(smallint, text, text, text, json, json) TO commitcast_writer; -- the outbox's constraint
GRANT EXECUTE ON FUNCTION commitcast.cursor_reason(text, text, bigint) TO commitcast_writer, commitcast_reader, commitcast_operator;
GRANT EXECUTE ON FUNCTION commitcast.begin_operation(text, text, bytea) TO commitcast_writer;
GRANT EXECUTE ON FUNCTION commitcast.forget_operations(interval, integer) TO commitcast_writer, commitcast_operator;
GRANT EXECUTE ON FUNCTION commitcast.hash_rows(text) TO commitcast_writer, commitcast_operator;
ALTER FUNCTION commitcast.forget_operations(interval, integer) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

-- ---------------------------------------------------------------------------------------------------------------
-- Workers sequence through functions: they can neither number events otherwise, nor change or remove what is numbered.

GRANT SELECT (id, partition) ON commitcast.outbox TO commitcast_worker;
GRANT SELECT ON commitcast.partition, commitcast.topic, commitcast.journal, commitcast.epoch TO commitcast_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON commitcast.parked TO commitcast_worker;
GRANT SELECT, INSERT, UPDATE ON commitcast.dead_letter TO commitcast_worker;

ALTER FUNCTION commitcast.check_epoch() SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION commitcast.begin_epoch(text, text) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION commitcast.sequence(smallint[], bigint[], integer, text, bigint[], bigint) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION commitcast.begin_drain(smallint, bigint) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION commitcast.horizon() SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION commitcast.ensure_leaves(integer) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
GRANT EXECUTE ON FUNCTION commitcast.check_epoch(), commitcast.begin_drain(smallint, bigint), commitcast.horizon(),
    commitcast.sequence(smallint[], bigint[], integer, text, bigint[], bigint),
    commitcast.sequence(smallint, bigint, integer, text, bigint), commitcast.ensure_leaves(integer) TO commitcast_worker;

-- Retention: leaves belong to the owner, so a worker has functions that detach and drop them, and these refuse every table
-- that is not a leaf, and every leaf that has not been through the step before.

-- is_leaf: whether a table is a leaf of the journal, attached or not.
CREATE FUNCTION commitcast.is_leaf(leaf regclass) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (SELECT FROM pg_class WHERE oid = leaf AND relnamespace = 'commitcast'::regnamespace AND relkind = 'r'
        AND relname ~ '^journal_[0-9]{8}$')
    $$;

-- leaf_is_published: whether the stream has confirmed every event of a leaf, or its topic is set aside.
-- Called by doom_leaf and drop_leaf. Locks: none.
CREATE OR REPLACE FUNCTION commitcast.leaf_is_published(leaf regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    waiting boolean;
BEGIN
    IF NOT commitcast.is_leaf(leaf) THEN
        RAISE EXCEPTION 'commitcast: % is not a leaf of the journal', leaf USING ERRCODE = '22023';
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM commitcast.partition p
        WHERE EXISTS (SELECT FROM %s l WHERE l.partition = p.id AND l.seq > p.published))', leaf) INTO waiting;
    RETURN NOT waiting;
END $$;

-- doom_leaf: marks a leaf to be detached and dropped, unless it holds unpublished events. Events of topics that are set
-- aside go to dead_letter first. The mark, a comment, tells leaves that retention has detached from those that somebody
-- else did, whose they are. Sequencing may still write to today's and yesterday's: these are refused.
-- Called by the worker's upkeep. Locks: the leaf (share update exclusive).
CREATE OR REPLACE FUNCTION commitcast.doom_leaf(leaf regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF NOT commitcast.leaf_is_published(leaf) THEN
        RETURN false;
    END IF;
    IF to_date(right(leaf::text, 8), 'YYYYMMDD') >= (now() AT TIME ZONE 'UTC')::date - 1 THEN
        RAISE EXCEPTION 'commitcast: % may still be written to', leaf USING ERRCODE = '22023';
    END IF;
    -- A statement after the look at published: a topic is set aside before published passes it.
    EXECUTE format('INSERT INTO commitcast.dead_letter
            (topic, "offset", epoch, partition, seq, id, type, key, data, headers, created_at, error, attempts)
        SELECT l.topic, l."offset", l.epoch, l.partition, l.seq, l.id, l.type, l.key, l.data, l.headers, l.created_at, p.error, p.attempts
        FROM %s l JOIN commitcast.parked p ON p.topic = l.topic AND l."offset" >= p.parked_from
        ON CONFLICT (topic, "offset") DO NOTHING', leaf);
    EXECUTE format('COMMENT ON TABLE %s IS %L', leaf, 'commitcast: past retention');
    RETURN true;
END $$;

-- detach_leaf: detaches a leaf that is marked. False: somebody uses the journal at this moment, so try again. It does not
-- wait for them, since all who come after would wait behind it, sequencing first.
-- Called by the worker's upkeep, alone in its transaction. Locks: journal and the leaf (access exclusive), if they are free.
CREATE FUNCTION commitcast.detach_leaf(leaf regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF NOT commitcast.is_leaf(leaf) OR obj_description(leaf, 'pg_class') IS DISTINCT FROM 'commitcast: past retention' THEN
        RAISE EXCEPTION 'commitcast: % is not a leaf that is past retention', leaf USING ERRCODE = '22023';
    END IF;
    -- Readers wait while the locks are held: not for the disk. A detachment that a crash undoes is done again.
    PERFORM set_config('synchronous_commit', 'off', true);
    BEGIN
        LOCK TABLE ONLY commitcast.journal IN ACCESS EXCLUSIVE MODE NOWAIT;
        EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', leaf);
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    END;
    EXECUTE format('ALTER TABLE commitcast.journal DETACH PARTITION %s', leaf);
    RETURN true;
END $$;

-- drop_leaf: drops a leaf that is marked and detached, unless it holds unpublished events: a clock that went back by days may
-- have added some before it was detached.
-- Called by the worker's upkeep. Locks: the leaf (access exclusive); it is waited for 100 ms, then error 55P03.
CREATE FUNCTION commitcast.drop_leaf(leaf regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF NOT commitcast.is_leaf(leaf) OR obj_description(leaf, 'pg_class') IS DISTINCT FROM 'commitcast: past retention'
        OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = leaf) THEN
        RAISE EXCEPTION 'commitcast: % is not a leaf that is past retention and detached', leaf USING ERRCODE = '22023';
    END IF;
    IF NOT commitcast.leaf_is_published(leaf) THEN
        RETURN false;
    END IF;
    PERFORM set_config('lock_timeout', '100ms', true);
    EXECUTE format('DROP TABLE %s', leaf);
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION commitcast.is_leaf(regclass), commitcast.detach_leaf(regclass), commitcast.drop_leaf(regclass) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION commitcast.doom_leaf(regclass), commitcast.detach_leaf(regclass), commitcast.drop_leaf(regclass) TO commitcast_worker;

-- ---------------------------------------------------------------------------------------------------------------
-- Readers: broadcasters. Nothing that is not sequenced yet.

GRANT SELECT ON commitcast.partition, commitcast.topic, commitcast.journal, commitcast.epoch TO commitcast_reader;

-- ---------------------------------------------------------------------------------------------------------------
-- Operators read everything, and change what a function lets them.

-- redrive_topics: makes topics that were given up (those that are named, or all of them if null; at most so many) wait for a job
-- again, which a worker orders within about a second; returns them.
-- Called by Redrive, and by operators. Locks: the rows of those topics in parked.
CREATE FUNCTION commitcast.redrive_topics(topics text[] DEFAULT NULL, most integer DEFAULT 10000) RETURNS SETOF text
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    UPDATE commitcast.parked p SET died_at = NULL, attempts = 0
    WHERE p.topic IN (
        SELECT d.topic FROM commitcast.parked d
        WHERE d.died_at IS NOT NULL AND (topics IS NULL OR d.topic = ANY (topics))
        ORDER BY d.topic LIMIT most FOR UPDATE)
    RETURNING p.topic
    $$;
REVOKE ALL ON FUNCTION commitcast.redrive_topics(text[], integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION commitcast.redrive_topics(text[], integer), commitcast.begin_epoch(text, text) TO commitcast_operator;
