-- Commitcast's schema: outbox, journal, topics, partitions, epochs, and the functions that append and sequence.
-- Runs in one transaction, by `commitcast migrate up`. River's tables are made in the same schema, by River's own
-- migrations, in the same command.

-- An administrator may have made it already, for a role that may not.
DO $$ BEGIN
    IF to_regnamespace('commitcast') IS NULL THEN
        CREATE SCHEMA commitcast;
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------------------
-- Names and limits. wire/limits.go and outbox/limits.go hold the same; a test keeps them together.

-- partition_of: the first two bytes of the topic's MD5, big-endian, modulo 32. Stable across versions and locales,
-- unlike hashtext. The same as wire.Partition in Go.
CREATE FUNCTION commitcast.partition_of(topic text) RETURNS smallint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (('x' || substr(md5(topic), 1, 4))::bit(16)::int % 32)::smallint;

-- check_event: true, or error 22023 with the messages of outbox/limits.go. One function, for one constraint: Postgres
-- prepares constraints anew for each INSERT, and as five expressions they took most of its time.
-- It looks for names in pg_catalog alone, whatever the writer's path: its word must hold against writers, too.
-- Called by the constraint of the outbox, and by append where NOT NULL would speak first. Locks: none.
CREATE FUNCTION commitcast.check_event(partition smallint, topic text, type text, key text, data json, headers json) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    -- Not {0,127}: that takes Postgres longer than the INSERT.
    IF topic IS NULL OR octet_length(topic) > 128 OR topic COLLATE "C" !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' THEN
        RAISE EXCEPTION 'commitcast: topic "%" does not match ^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$',
            left(coalesce(topic, ''), 144) USING ERRCODE = '22023';
    END IF;
    IF coalesce(octet_length(type), 0) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION 'commitcast: type must have 1 to 128 bytes, not %', coalesce(octet_length(type), 0)
            USING ERRCODE = '22023';
    END IF;
    -- Those of the system tell of a change of somebody's access (append_fences); append refuses them to everybody else.
    IF starts_with(type, 'commitcast.') AND NOT (type IN ('commitcast.revoke', 'commitcast.restore')
        AND coalesce(json_typeof(data -> 'subject') = 'string', false)) THEN
        RAISE EXCEPTION 'commitcast: types that begin with "commitcast." are the system''s own' USING ERRCODE = '22023';
    END IF;
    IF key IS NOT NULL AND octet_length(key) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION 'commitcast: key must have 1 to 128 bytes, not %', octet_length(key) USING ERRCODE = '22023';
    END IF;
    IF data IS NULL THEN
        RAISE EXCEPTION 'commitcast: data is missing; use the JSON value null for an event without data'
            USING ERRCODE = '22023';
    END IF;
    IF octet_length(data::text) > 262144 THEN
        RAISE EXCEPTION 'commitcast: data has % bytes, more than the limit of 262144', octet_length(data::text)
            USING ERRCODE = '22023';
    END IF;
    IF headers IS NOT NULL THEN
        IF json_typeof(headers) <> 'object' THEN
            RAISE EXCEPTION 'commitcast: headers must be a JSON object' USING ERRCODE = '22023';
        END IF;
        IF octet_length(headers::text) > 4096 THEN
            RAISE EXCEPTION 'commitcast: headers have % bytes, more than the limit of 4096', octet_length(headers::text)
                USING ERRCODE = '22023';
        END IF;
    END IF;
    -- Who may insert into the outbox might name a partition that is not the topic's, and break the order of both.
    IF partition <> commitcast.partition_of(topic) THEN
        RAISE EXCEPTION 'commitcast: partition % is not that of topic "%"', partition, topic USING ERRCODE = '22023';
    END IF;
    RETURN true;
END $$;

-- ---------------------------------------------------------------------------------------------------------------
-- Epochs: the histories of this database.

-- incarnation: names the server process that writes this history: system identifier, timeline, postmaster start. A
-- restart, a promotion, a restored backup or a copied volume changes at least one of the three. Primary only.
CREATE FUNCTION commitcast.incarnation() RETURNS text
    LANGUAGE sql VOLATILE PARALLEL SAFE
    AS $$
    SELECT (SELECT system_identifier FROM pg_control_system()) || '/'
        || ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int || '/'
        || (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
    $$;

CREATE TABLE commitcast.epoch (
    ordinal     integer PRIMARY KEY CHECK (ordinal > 0),
    name        text COLLATE "C" NOT NULL UNIQUE,           -- ordinal and random part, as in '4-9f3c01b7'
    incarnation text COLLATE "C" NOT NULL,
    born        timestamptz NOT NULL,                       -- postmaster start of that incarnation
    reason      text NOT NULL,
    began_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The ordinal of the current epoch, in a table that crash recovery empties. Postgres also recovers when just one of its
-- processes was killed, under the same postmaster: commits that did not wait for the disk (synchronous_commit = off)
-- are lost then, and their event ids are given again, while the incarnation stays the same.
CREATE UNLOGGED TABLE commitcast.uncrashed (
    ordinal     integer PRIMARY KEY
);

-- ---------------------------------------------------------------------------------------------------------------
-- Stage 1: events of committed transactions, not yet sequenced. Normally a few rows.

CREATE TABLE commitcast.outbox (
    -- CACHE 1: ids must follow the order in which transactions draw them (G3).
    id          bigint GENERATED ALWAYS AS IDENTITY (CACHE 1),
    partition   smallint NOT NULL,
    topic       text COLLATE "C" NOT NULL,
    type        text COLLATE "C" NOT NULL,
    key         text COLLATE "C",
    data        json NOT NULL,
    headers     json,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Which incarnation of the server took the row: the cheap stamp that lets a snapshot notice that rows are newer
    -- than the newest epoch it can see.
    born        timestamptz NOT NULL DEFAULT pg_postmaster_start_time(),
    PRIMARY KEY (partition, id),
    CONSTRAINT outbox_event CHECK (commitcast.check_event(partition, topic, type, key, data, headers))
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_cost_delay = 0);

-- ---------------------------------------------------------------------------------------------------------------
-- Stage 2: sequenced events.

CREATE TABLE commitcast.partition (
    id                smallint PRIMARY KEY CHECK (id BETWEEN 0 AND 31),
    seq               bigint NOT NULL DEFAULT 0,   -- the last seq given
    published         bigint NOT NULL DEFAULT 0,   -- every seq up to here was confirmed by the stream
    term              bigint NOT NULL DEFAULT 0,   -- of the newest drain that has begun
    floor             bigint NOT NULL DEFAULT 0,   -- no outbox row with an id up to here will be seen again
    last_sequenced_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);                          -- one row a page: updated all the time, in place
INSERT INTO commitcast.partition (id) SELECT generate_series(0, 31);

CREATE TABLE commitcast.topic (
    topic       text COLLATE "C" PRIMARY KEY,
    partition   smallint NOT NULL,
    head        bigint NOT NULL,                   -- the last offset given
    head_epoch  text COLLATE "C" NOT NULL          -- the epoch of that offset; outlives its journal row
) WITH (fillfactor = 70);                          -- rows are never deleted: an offset is never reused

-- One leaf a day, made ahead of time; retention drops leaves. Indexes and the uniqueness of (topic, offset) are on
-- each leaf: a unique constraint of the whole table would have to contain sequenced_at.
CREATE TABLE commitcast.journal (
    topic        text COLLATE "C" NOT NULL,
    "offset"     bigint NOT NULL,
    epoch        text COLLATE "C" NOT NULL,
    partition    smallint NOT NULL,
    seq          bigint NOT NULL,
    id           bigint NOT NULL,
    type         text COLLATE "C" NOT NULL,
    key          text COLLATE "C",
    data         json NOT NULL,
    headers      json,
    created_at   timestamptz NOT NULL,
    sequenced_at timestamptz NOT NULL
) PARTITION BY RANGE (sequenced_at);

-- Topics that the stream refuses while it takes others. Each is published by a River job of its own, topic_republish;
-- drains skip it, so that its partition flows on. Its subscribers are served from the journal meanwhile.
CREATE TABLE commitcast.parked (
    topic       text COLLATE "C" PRIMARY KEY,
    partition   smallint NOT NULL,
    parked_from bigint NOT NULL,                   -- the first offset that the stream may lack
    parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts    integer NOT NULL DEFAULT 0,        -- of the job
    error       text NOT NULL,                     -- of the newest attempt
    tried_at    timestamptz,
    died_at     timestamptz                        -- the last attempt has failed: nothing happens until redrive
);
CREATE INDEX ON commitcast.parked (partition);

-- Events that could not be published: the one at which a topic's last attempt failed, and what retention would have
-- taken from a topic that is set aside. Redrive marks them; rows leave only by an operator's hand.
CREATE TABLE commitcast.dead_letter (
    topic       text COLLATE "C" NOT NULL,
    "offset"    bigint NOT NULL,
    epoch       text COLLATE "C" NOT NULL,
    partition   smallint NOT NULL,
    seq         bigint NOT NULL,
    id          bigint NOT NULL,
    type        text COLLATE "C" NOT NULL,
    key         text COLLATE "C",
    data        json NOT NULL,
    headers     json,
    created_at  timestamptz NOT NULL,
    error       text NOT NULL,
    attempts    integer NOT NULL,
    job         bigint,                            -- the River job that gave up, with the errors of all its attempts
    died_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    redriven_at timestamptz,                       -- published after all
    PRIMARY KEY (topic, "offset")
);

-- ---------------------------------------------------------------------------------------------------------------
-- Functions for writers.

-- append: adds one event to the caller's transaction and returns its id. Call it after the transaction's last write
-- to the rows that the event is about: offsets follow the order of these calls (docs/guarantees.md, G3).
-- Called by writers. Locks: none but the row it inserts. Errors: those of check_event.
CREATE FUNCTION commitcast.append(topic text, type text, data json, key text DEFAULT NULL, headers json DEFAULT NULL)
    RETURNS bigint LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    new_id bigint;
BEGIN
    IF topic IS NULL OR type IS NULL OR data IS NULL THEN
        PERFORM commitcast.check_event(NULL, topic, type, key, data, headers);  -- says what is missing; the rest, the constraint
    END IF;
    INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
    VALUES (commitcast.partition_of(append.topic), append.topic, append.type, append.key, append.data, append.headers)
    RETURNING id INTO new_id;
    RETURN new_id;
END $$;

-- ---------------------------------------------------------------------------------------------------------------
-- Functions for workers.

-- check_epoch: the name of the current epoch; begins a new one when the incarnation has changed or the server has
-- recovered from a crash. Neither happens under a session that is writing: a restart, a recovery and a promotion each
-- come before its first write or end it. So a session looks once, and then only whether the epoch is still the newest.
-- Called by sequence and by every new worker connection. Locks: epoch (share row exclusive), only to begin one.
CREATE FUNCTION commitcast.check_epoch() RETURNS text
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    now_incarnation text;
    newest text;
    e commitcast.epoch;
BEGIN
    SELECT * INTO e FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1;
    IF current_setting('commitcast.checked_epoch', true) = e.name THEN
        RETURN e.name;
    END IF;
    now_incarnation := commitcast.incarnation();
    IF e.incarnation = now_incarnation AND EXISTS (SELECT FROM commitcast.uncrashed WHERE ordinal = e.ordinal) THEN
        newest := e.name;
    ELSE
        newest := commitcast.begin_epoch(now_incarnation,
            CASE WHEN e.incarnation = now_incarnation THEN 'crash recovery' ELSE 'incarnation changed' END);
    END IF;
    PERFORM set_config('commitcast.checked_epoch', newest, false);  -- undone if this transaction is
    RETURN newest;
END $$;

-- begin_epoch: begins a new epoch, unless another session has begun one for the same incarnation meanwhile.
-- An incarnation of NULL begins one in any case: that is the operator's bump.
CREATE FUNCTION commitcast.begin_epoch(new_incarnation text, why text) RETURNS text
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    e commitcast.epoch;
    n integer;
    new_name text;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    LOCK TABLE commitcast.epoch IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO e FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1;
    IF e.incarnation = new_incarnation AND EXISTS (SELECT FROM commitcast.uncrashed WHERE ordinal = e.ordinal) THEN
        RETURN e.name;
    END IF;
    n := coalesce(e.ordinal, 0) + 1;
    -- The random part keeps apart two epochs of the same number, counted in two databases that were one.
    new_name := n || '-' || encode(substr(uuid_send(gen_random_uuid()), 1, 4), 'hex');
    INSERT INTO commitcast.epoch (ordinal, name, incarnation, born, reason)
    VALUES (n, new_name, coalesce(new_incarnation, commitcast.incarnation()), pg_postmaster_start_time(), why);
    DELETE FROM commitcast.uncrashed;
    INSERT INTO commitcast.uncrashed VALUES (n);
    RETURN new_name;
END $$;

-- sequence: gives offsets to committed events of some partitions: moves them from outbox to journal, in id order, and
-- records how far publishing is confirmed. Returns where each partition stands, not the rows: a client that stops reading
-- must not hold the locks. At most batch events, shared among the partitions that have work, but up to 8 of each in any case;
-- more says that a partition may have more. It has nothing to say (null) of a partition whose row somebody else has locked.
-- One event of one partition, the usual case where little happens, goes by statements of a node or two: the one for any number
-- has forty, and preparing these to run takes longer than the event.
-- Called by the worker's sequencer, alone in its transaction, at READ COMMITTED: once for all drains that wait.
-- Locks in order: partition rows, none waited for; topic rows (only ever taken under their partition's row).
-- Invariants: (topic, offset) and (partition, seq) have no holes; published <= seq, and every seq up to published was
-- answered by the stream; no row will ever be seen in the outbox with an id up to floor.
-- dones (published up to here, for each partition; null tells nothing) and safe (see horizon) count only in the epoch in
-- which they were told: after a change of epoch everything is offered again, and ids are given again.
CREATE FUNCTION commitcast.sequence(ps smallint[], my_terms bigint[], batch integer, told_epoch text, dones bigint[], safe bigint)
    RETURNS TABLE (partition smallint, epoch text, seq bigint, published bigint, term bigint, sequenced integer, more boolean)
    LANGUAGE plpgsql VOLATILE
    AS $$
#variable_conflict use_column
DECLARE
    current text := commitcast.check_epoch();
    told boolean := told_epoch IS NOT DISTINCT FROM current;
    work smallint[];
    locked commitcast.partition[];
    at timestamptz;
    most integer;
    q commitcast.partition;
    found tid[];
    o commitcast.outbox;
    head bigint;
BEGIN
    work := ARRAY(
        SELECT q.id FROM unnest(ps, my_terms, dones) AS w (p, my_term, done) JOIN commitcast.partition q ON q.id = w.p
        WHERE q.term <= w.my_term
            AND (told AND w.done IS NOT NULL AND (w.done > q.published OR safe > q.floor)
                OR (SELECT o.id FROM commitcast.outbox o WHERE o.partition = q.id AND o.id > q.floor ORDER BY o.id LIMIT 1) IS NOT NULL));
    IF cardinality(work) = 0 THEN
        RETURN QUERY SELECT q.id, current, q.seq, q.published, q.term, 0, false FROM commitcast.partition q WHERE q.id = ANY (ps);
        RETURN;  -- nothing to write: no lock, no commit record
    END IF;

    -- Sequenced events must survive a crash before anyone sees them, whatever the database's default is.
    PERFORM set_config('synchronous_commit', 'on', true);

    -- A statement of its own: the next one must see everything that committed before the locks were granted. Nobody waits
    -- for a lock here, since all partitions of a process would wait with it, and could in a circle.
    locked := ARRAY(
        SELECT q FROM unnest(ps, my_terms) AS w (p, my_term) JOIN commitcast.partition q ON q.id = w.p
        WHERE q.id = ANY (work) AND q.term <= w.my_term ORDER BY q.id FOR UPDATE OF q SKIP LOCKED);
    at := greatest(clock_timestamp(), (SELECT max(last_sequenced_at) FROM unnest(locked)));
    most := least(batch, greatest(batch / greatest(cardinality(locked), 1), 8));

    IF cardinality(ps) = 1 AND cardinality(locked) = 1 THEN
        q := locked[1];
        found := ARRAY(SELECT w.ctid FROM commitcast.outbox w WHERE w.partition = q.id AND w.id > q.floor ORDER BY w.id LIMIT least(most, 2));
        IF cardinality(found) = 1 THEN
            DELETE FROM commitcast.outbox WHERE ctid = found[1] RETURNING * INTO STRICT o;
            INSERT INTO commitcast.topic AS t (topic, partition, head, head_epoch) VALUES (o.topic, q.id, 1, current)
            ON CONFLICT (topic) DO UPDATE SET head = t.head + 1, head_epoch = EXCLUDED.head_epoch
            RETURNING t.head INTO head;
            INSERT INTO commitcast.journal
                (topic, "offset", epoch, partition, seq, id, type, key, data, headers, created_at, sequenced_at)
            VALUES (o.topic, head, current, q.id, q.seq + 1, o.id, o.type, o.key, o.data, o.headers, o.created_at, at);
            -- As below.
            UPDATE commitcast.partition p
            SET seq = q.seq + 1,
                last_sequenced_at = at,
                published = CASE WHEN told THEN least(greatest(dones[1], q.published), q.seq) ELSE q.published END,
                floor = CASE WHEN NOT told OR dones[1] IS NULL THEN q.floor
                    WHEN most > 1 THEN greatest(q.floor, safe)
                    ELSE greatest(q.floor, least(safe, o.id)) END
            WHERE p.id = q.id
            RETURNING p.* INTO q;
            RETURN QUERY VALUES (q.id, current, q.seq, q.published, q.term, 1, most = 1);
            RETURN;
        END IF;
    END IF;

    RETURN QUERY
    WITH taken AS (
        -- By ctid: rows of the outbox never move, and no plan can be worse than looking up just these.
        DELETE FROM commitcast.outbox WHERE ctid = ANY (ARRAY(
            SELECT w.ctid FROM unnest(locked) AS q CROSS JOIN LATERAL (
                SELECT o.ctid FROM commitcast.outbox o WHERE o.partition = q.id AND o.id > q.floor ORDER BY o.id LIMIT most) AS w))
        RETURNING *
    ), heads AS (
        INSERT INTO commitcast.topic AS t (topic, partition, head, head_epoch)
        SELECT topic, partition, count(*), current FROM taken GROUP BY topic, partition
        ON CONFLICT (topic) DO UPDATE SET head = t.head + EXCLUDED.head, head_epoch = EXCLUDED.head_epoch
        RETURNING t.topic, t.head
    ), numbered AS (
        SELECT taken.*,
            row_number() OVER (PARTITION BY partition ORDER BY id) AS nth,
            row_number() OVER (PARTITION BY topic ORDER BY id) - count(*) OVER (PARTITION BY topic) AS back
        FROM taken
    ), moved AS (
        INSERT INTO commitcast.journal
            (topic, "offset", epoch, partition, seq, id, type, key, data, headers, created_at, sequenced_at)
        SELECT n.topic, heads.head + back, current, n.partition, q.seq + nth, n.id, type, key, data, headers, created_at, at
        FROM numbered n JOIN heads USING (topic) JOIN unnest(locked) AS q ON q.id = n.partition
        ORDER BY n.partition, nth
        RETURNING partition, id
    ), counted AS (
        SELECT partition, count(*)::integer AS n, max(id) AS top FROM moved GROUP BY partition
    ), stands AS (
        UPDATE commitcast.partition q
        SET seq = q.seq + coalesce(c.n, 0),
            last_sequenced_at = at,
            published = CASE WHEN told THEN least(greatest(w.done, q.published), q.seq) ELSE q.published END,
            -- Nothing is left up to the last row taken, or at all. What comes later has an id above safe.
            floor = CASE WHEN NOT told OR w.done IS NULL THEN q.floor
                WHEN coalesce(c.n, 0) < most THEN greatest(q.floor, safe)
                WHEN c.n > 0 THEN greatest(q.floor, least(safe, c.top))
                ELSE q.floor END
        FROM unnest(ps, dones) AS w (p, done)
            JOIN unnest(locked) AS l ON l.id = w.p
            LEFT JOIN counted c ON c.partition = w.p
        WHERE q.id = w.p
        RETURNING q.id, q.seq, q.published, q.term, coalesce(c.n, 0) AS n
    )
    SELECT s.id, current, s.seq, s.published, s.term, s.n, s.n = most AND s.n > 0 FROM stands s
    UNION ALL
    SELECT q.id, current, q.seq, q.published, q.term, CASE WHEN q.id = ANY (work) AND q.term <= w.my_term THEN NULL ELSE 0 END, false
    FROM unnest(ps, my_terms) AS w (p, my_term) JOIN commitcast.partition q ON q.id = w.p
    WHERE NOT EXISTS (SELECT FROM unnest(locked) AS l WHERE l.id = w.p);
END $$;

-- sequence: the same for one partition, by hand.
CREATE FUNCTION commitcast.sequence(p smallint, my_term bigint, batch integer, told_epoch text, done bigint)
    RETURNS TABLE (epoch text, seq bigint, published bigint, term bigint, sequenced integer)
    LANGUAGE sql VOLATILE
    AS $$
    SELECT epoch, seq, published, term, sequenced
    FROM commitcast.sequence(ARRAY[p], ARRAY[my_term], batch, told_epoch, ARRAY[done], 0)
    $$;

-- horizon: the newest event id that was given, and who may still commit rows with that id or an earlier one: the
-- transactions that hold the lock of a writer on the outbox. Once all of these have ended, every row with an id up to
-- newest that will ever be is visible to new snapshots: newest is safe.
-- Why: an INSERT locks the table before it draws its id, and lets go after its commit can be seen. Whoever is not
-- among the holders has ended, or draws an id above newest, since newest is read first. Transaction ids would not do:
-- an INSERT draws the event's id first and has no transaction id until it writes the row. Readers hold another lock, so
-- they stall nothing, however long they run.
-- Called by the worker, some times a second while it drains, each statement with a snapshot of its own. Locks: none.
CREATE FUNCTION commitcast.horizon(OUT epoch text, OUT newest bigint, OUT writers text[])
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    epoch := commitcast.check_epoch();
    newest := (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM commitcast.outbox_id_seq);
    writers := ARRAY(
        SELECT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND relation = 'commitcast.outbox'::regclass AND mode = 'RowExclusiveLock' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));
END $$;

-- begin_drain: records that the drain of a term has begun. False: a newer one has, and the caller must stop. Waits 50 ms for
-- the partition's row, several batches' time, since all drains of a process wait with it: then error 55P03.
-- Called by the worker's sequencer for a drain before it sequences. Locks: partition row.
CREATE FUNCTION commitcast.begin_drain(p smallint, new_term bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM commitcast.check_epoch();
    PERFORM set_config('lock_timeout', '50ms', true);
    UPDATE commitcast.partition SET term = new_term WHERE id = p AND term < new_term;
    RETURN FOUND;
END $$;

-- ensure_leaves: makes the journal's leaves for today and the days ahead; returns how many it made. A leaf is made
-- apart and then attached, since that does not wait for readers of the journal.
-- Called by migrate and by the worker's upkeep. Locks: journal (share update exclusive), briefly; no reader or writer waits.
CREATE FUNCTION commitcast.ensure_leaves(days_ahead integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE
    -- Days are days in UTC, and bounds are written as text: a session's zone would move the one, and its date style
    -- can make the other ambiguous.
    SET TimeZone = 'UTC'
    SET DateStyle = 'ISO, YMD'
    AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    latest timestamptz := (SELECT max(last_sequenced_at) FROM commitcast.partition WHERE last_sequenced_at > '-infinity');
    day date;
    leaf text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('commitcast.ensure_leaves'));
    -- A clock that was ahead has moved last_sequenced_at past today: sequencing needs that leaf, too.
    FOR day IN SELECT generate_series(today - 1, greatest(today, (latest AT TIME ZONE 'UTC')::date) + days_ahead, '1 day') LOOP
        leaf := 'journal_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass('commitcast.' || leaf) IS NOT NULL;
        EXECUTE format('CREATE TABLE commitcast.%I (LIKE commitcast.journal)', leaf);
        EXECUTE format('ALTER TABLE commitcast.%I ADD PRIMARY KEY (topic, "offset")', leaf);
        EXECUTE format('CREATE UNIQUE INDEX ON commitcast.%I (partition, seq)', leaf);
        EXECUTE format('ALTER TABLE commitcast.journal ATTACH PARTITION commitcast.%I FOR VALUES FROM (%L) TO (%L)',
            leaf, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

-- leaf_is_published: whether the stream has confirmed every event of a leaf, or its topic is set aside.
-- Called by doom_leaf, and by the worker's upkeep before it drops a leaf that is detached. Locks: none.
CREATE FUNCTION commitcast.leaf_is_published(leaf regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    waiting boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM commitcast.partition p
        WHERE EXISTS (SELECT FROM %s l WHERE l.partition = p.id AND l.seq > p.published))', leaf) INTO waiting;
    RETURN NOT waiting;
END $$;

-- doom_leaf: marks a leaf to be detached and dropped, unless it holds unpublished events. Events of topics that are set
-- aside go to dead_letter first. The mark, a comment, tells leaves that retention has detached from those that somebody
-- else did, whose they are.
-- Called by the worker's upkeep. Locks: the leaf (share update exclusive).
CREATE FUNCTION commitcast.doom_leaf(leaf regclass) RETURNS boolean
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    IF NOT commitcast.leaf_is_published(leaf) THEN
        RETURN false;
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

-- ---------------------------------------------------------------------------------------------------------------
-- Functions for broadcasters and clients.

-- cursor_reason: why a subscriber cannot go on from a cursor, or NULL if it can. A cursor e:n is valid if e is in the
-- lineage, n is not beyond the head, and row n was sequenced no later than in e.
CREATE FUNCTION commitcast.cursor_reason(p_topic text, p_epoch text, p_offset bigint) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    seen integer := (SELECT ordinal FROM commitcast.epoch WHERE name = p_epoch);
    t commitcast.topic;
    row_epoch text;
BEGIN
    IF seen IS NULL THEN
        RETURN 'epoch';
    END IF;
    SELECT * INTO t FROM commitcast.topic WHERE topic = p_topic;
    IF p_offset > coalesce(t.head, 0) THEN
        RETURN 'ahead';
    END IF;
    IF p_offset = coalesce(t.head, 0) THEN      -- nothing is missing, also past retention
        RETURN CASE WHEN p_offset > 0 AND (SELECT ordinal FROM commitcast.epoch WHERE name = t.head_epoch) > seen THEN 'epoch' END;
    END IF;
    -- No row is of a later epoch than the newest, and where row n is, row n+1 is: one look tells.
    IF p_offset > 0 AND EXISTS (SELECT FROM commitcast.epoch WHERE ordinal > seen) THEN
        SELECT epoch INTO row_epoch FROM commitcast.journal WHERE topic = p_topic AND "offset" = p_offset;
        IF row_epoch IS NOT NULL THEN
            RETURN CASE WHEN (SELECT ordinal FROM commitcast.epoch WHERE name = row_epoch) > seen THEN 'epoch' END;
        END IF;
    END IF;
    -- The row itself is gone, or need not be asked; the next one decides whether anything is missing.
    SELECT epoch INTO row_epoch FROM commitcast.journal WHERE topic = p_topic AND "offset" = p_offset + 1;
    IF row_epoch IS NULL THEN
        RETURN 'trimmed';
    END IF;
    IF p_offset > 0 AND (SELECT ordinal FROM commitcast.epoch WHERE name = row_epoch) > seen THEN
        RETURN 'trimmed';                   -- whether row n was of epoch e cannot be known any more
    END IF;
    RETURN NULL;
END $$;
