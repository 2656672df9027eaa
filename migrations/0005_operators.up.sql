-- What operators order, and a record of it.

-- A partition that an operator has paused. Nothing of it is sequenced or published until it is resumed.
ALTER TABLE commitcast.partition
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_by text,
    ADD COLUMN paused_why text;

-- Ranges that operators have ordered to be published again, one at a time for a topic, each by a River job
-- topic_republish. The row goes when it is done.
CREATE TABLE commitcast.redrive (
    topic      text COLLATE "C" PRIMARY KEY,
    first      bigint NOT NULL CHECK (first > 0),
    last       bigint NOT NULL,
    next       bigint NOT NULL,                    -- the first offset that the stream has not confirmed
    audit      bigint NOT NULL,                    -- who ordered it
    ordered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (first <= last)
);

-- Every action of an operator. Rows are written in the transaction that carries the action out, or, where it is carried
-- out elsewhere, before it, and completed after it: result is null as long as nobody knows.
CREATE TABLE commitcast.audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    who      text NOT NULL,                        -- as the operator's console says
    role     text NOT NULL DEFAULT session_user,   -- as the database knows
    action   text NOT NULL,
    target   text NOT NULL,
    detail   json,
    result   text,
    ended_at timestamptz,
    CONSTRAINT audit_who CHECK (octet_length(who) BETWEEN 1 AND 200),
    CONSTRAINT audit_detail CHECK (octet_length(detail::text) <= 65536)
);

-- Dead letters that wait for somebody, the newest first; and topics that were given up.
CREATE INDEX dead_letter_open ON commitcast.dead_letter (died_at, topic, "offset") WHERE redriven_at IS NULL;
CREATE INDEX parked_died ON commitcast.parked (topic) WHERE died_at IS NOT NULL;

-- begin_drain: as before, and false for a partition that is paused.
CREATE OR REPLACE FUNCTION commitcast.begin_drain(p smallint, new_term bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM commitcast.check_epoch();
    PERFORM set_config('lock_timeout', '50ms', true);
    UPDATE commitcast.partition SET term = new_term WHERE id = p AND term < new_term AND paused_at IS NULL;
    RETURN FOUND;
END $$;

-- pause_partition: pauses a partition. False: it is paused already. The term that it begins is nobody's: the drain that runs
-- can sequence no more from here on, and ends when it next asks; nor can those that are ordered already, whose terms lie a
-- few above, and which sequence in the same round trip in which they learn that they may not begin.
-- Called by operators. Locks: partition row.
CREATE FUNCTION commitcast.pause_partition(p smallint, who text, why text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE commitcast.partition SET term = term + 1000, paused_at = clock_timestamp(), paused_by = who, paused_why = why
    WHERE id = p AND paused_at IS NULL;
    RETURN FOUND;
END $$;

-- resume_partition: ends the pause that began at a time. False: it has ended already, or is another one.
-- Called by operators. Locks: partition row.
CREATE FUNCTION commitcast.resume_partition(p smallint, since timestamptz) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE commitcast.partition SET paused_at = NULL, paused_by = NULL, paused_why = NULL WHERE id = p AND paused_at = since;
    RETURN FOUND;
END $$;

-- park_topic: sets a topic aside until it is released; null: it is set aside already. Returns the first offset that the stream
-- may lack from now on. The drain of its partition is passed by the next term, which knows of it: a drain asks only at
-- its beginning which topics are set aside, and then about those that it set aside itself.
-- Called by operators. Locks in order: partition row, the topic's row in parked; the journal is read before.
-- Invariant: a topic is set aside before partition.published passes an event of it that the stream lacks. What is read without
-- the lock only grows, and in this order it says too little at most: an event that the stream lacks when the lock is held is either
-- beyond the head that was read, or among those that were not published then.
CREATE FUNCTION commitcast.park_topic(p_topic text, why text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    p smallint := commitcast.partition_of(p_topic);
    done bigint;
    since bigint;
BEGIN
    SELECT head + 1 INTO since FROM commitcast.topic WHERE topic = p_topic;
    IF since IS NULL THEN
        RAISE EXCEPTION 'commitcast: there is no topic "%"', p_topic USING ERRCODE = '22023';
    END IF;
    SELECT published INTO done FROM commitcast.partition WHERE id = p;
    SELECT coalesce(min(j."offset"), since) INTO since FROM (
        SELECT topic, "offset" FROM commitcast.journal WHERE partition = p AND seq > done ORDER BY seq) j
    WHERE j.topic = p_topic;
    UPDATE commitcast.partition SET term = term + 1 WHERE id = p;
    INSERT INTO commitcast.parked (topic, partition, parked_from, error, died_at)
    VALUES (p_topic, p, since, why, clock_timestamp())
    ON CONFLICT (topic) DO NOTHING;
    RETURN CASE WHEN FOUND THEN since END;
END $$;

-- retry_republish: has the job of a topic that waits for its next attempt run at once, and returns it; null: there is none that
-- waits. Called by operators. Locks: the job's row.
CREATE FUNCTION commitcast.retry_republish(p_topic text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    job bigint;
BEGIN
    UPDATE commitcast.river_job SET state = 'available', scheduled_at = clock_timestamp()
    WHERE id = (SELECT id FROM commitcast.river_job WHERE kind = 'topic_republish' AND args @> jsonb_build_object('topic', p_topic)
        AND state IN ('retryable', 'scheduled') ORDER BY id DESC LIMIT 1)
        AND state IN ('retryable', 'scheduled') -- it may have begun to run while its row was waited for
    RETURNING id INTO job;
    RETURN job;
END $$;

-- Workers go on with what was ordered, and write down how it ended. Operators order and record: of a record they can change
-- the result only, and remove none.
REVOKE ALL ON commitcast.redrive, commitcast.audit FROM PUBLIC;
REVOKE ALL ON FUNCTION commitcast.pause_partition(smallint, text, text), commitcast.resume_partition(smallint, timestamptz),
    commitcast.park_topic(text, text), commitcast.retry_republish(text) FROM PUBLIC;
GRANT SELECT, UPDATE, DELETE ON commitcast.redrive TO commitcast_worker;
GRANT SELECT (id), UPDATE (result, ended_at) ON commitcast.audit TO commitcast_worker;
GRANT SELECT, INSERT (topic, first, last, next, audit) ON commitcast.redrive TO commitcast_operator;
GRANT SELECT, INSERT (who, action, target, detail, result, ended_at), UPDATE (result, ended_at) ON commitcast.audit TO commitcast_operator;
GRANT DELETE ON commitcast.dead_letter TO commitcast_operator;
GRANT EXECUTE ON FUNCTION commitcast.pause_partition(smallint, text, text), commitcast.resume_partition(smallint, timestamptz),
    commitcast.park_topic(text, text), commitcast.retry_republish(text) TO commitcast_operator;
