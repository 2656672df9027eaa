-- Revocation: who may not read a topic any more, and from which of its events on.

-- The newest change of each subject's access to a topic. It stays until it is changed again: no clock ends it.
CREATE TABLE commitcast.revocation (
    topic       text COLLATE "C" NOT NULL,
    subject     text COLLATE "C" NOT NULL,          -- "sub" of the tokens
    revoked     boolean NOT NULL,                   -- false: it was, and is restored
    event_id    bigint NOT NULL DEFAULT 0,          -- of the event whose offset is where the change takes effect
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, subject),
    CONSTRAINT revocation_topic CHECK (topic ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' AND octet_length(topic) <= 128),
    CONSTRAINT revocation_subject CHECK (octet_length(subject) BETWEEN 1 AND 255)
) WITH (fillfactor = 70);

-- append_fences: append, for many events, with revocations and restorations among them, in this order; returns their ids in
-- order. Where a transaction changes the same subject's access to a topic more than once, the last change stays.
-- Called by package outbox as the last statement of a transaction, and by revoke and restore.
-- Locks: the rows of revocation, in order of topic and subject, so that two transactions cannot wait in a circle for them.
-- Invariant: a row's lock is held before the event's id is drawn, so of two changes of one subject's access the one with the
-- higher id, hence the higher offset, is the one that the row tells of.
CREATE FUNCTION commitcast.append_fences(topics text[], types text[], keys text[], datas text[], headers text[])
    RETURNS SETOF bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    INSERT INTO commitcast.revocation AS r (topic, subject, revoked)
    SELECT DISTINCT ON (topic COLLATE "C", subject COLLATE "C") topic, subject, revoked
    FROM (
        SELECT e.topic, e.data::json ->> 'subject' AS subject, e.type = 'commitcast.revoke' AS revoked, e.n
        FROM unnest(topics, types, datas) WITH ORDINALITY AS e (topic, type, data, n)
        WHERE starts_with(e.type, 'commitcast.')
    ) AS changes
    ORDER BY topic COLLATE "C", subject COLLATE "C", n DESC
    ON CONFLICT (topic, subject) DO UPDATE SET revoked = EXCLUDED.revoked, changed_at = clock_timestamp();

    RETURN QUERY
    WITH added AS (
        INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
        SELECT commitcast.partition_of(e.topic), e.topic, e.type, nullif(e.key, ''), e.data::json, nullif(e.header, '')::json
        FROM unnest(topics, types, keys, datas, headers) WITH ORDINALITY AS e (topic, type, key, data, header, n)
        ORDER BY e.n
        RETURNING id, topic, type, data
    ), noted AS (
        UPDATE commitcast.revocation AS r SET event_id = a.id
        FROM (
            SELECT topic, data ->> 'subject' AS subject, max(id) AS id FROM added
            WHERE starts_with(type, 'commitcast.') GROUP BY 1, 2
        ) AS a
        WHERE r.topic = a.topic AND r.subject = a.subject
    )
    SELECT id FROM added ORDER BY id;
END $$;

-- change_access: what revoke and restore do.
-- Called by them. Locks: the row of revocation. Errors 22023 with the messages of outbox/revoke.go.
CREATE FUNCTION commitcast.change_access(p_subject text, p_topic text, p_type text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF p_topic IS NULL OR octet_length(p_topic) > 128 OR p_topic !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' THEN
        RAISE EXCEPTION 'commitcast: topic "%" does not match ^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$',
            left(coalesce(p_topic, ''), 144) USING ERRCODE = '22023';
    END IF;
    IF coalesce(octet_length(p_subject), 0) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'commitcast: subject must have 1 to 255 bytes, not %', coalesce(octet_length(p_subject), 0)
            USING ERRCODE = '22023';
    END IF;
    RETURN commitcast.append_fences(ARRAY[p_topic], ARRAY[p_type], ARRAY[''],
        ARRAY[json_build_object('subject', p_subject)::text], ARRAY['']);
END $$;

-- revoke: from this event on, and for what lies before it, too, the subject may not read the topic, on any node, whatever its
-- token says, until restore. Returns the event's id. Call it after the transaction's last write, like append.
-- Called by writers and operators. Locks: the row of revocation: changes of one subject's access to one topic wait for each
-- other. Errors 22023.
CREATE FUNCTION commitcast.revoke(subject text, topic text) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$ SELECT commitcast.change_access(revoke.subject, revoke.topic, 'commitcast.revoke') $$;

-- restore: the subject may read the topic again, all of it, as far as its token says. Returns the event's id.
-- Called by writers and operators. Locks: as revoke.
CREATE FUNCTION commitcast.restore(subject text, topic text) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$ SELECT commitcast.change_access(restore.subject, restore.topic, 'commitcast.restore') $$;

-- revoked: whether the subject may not read the topic: for what a service hands out itself, such as its snapshots.
-- Called by writers and readers. Locks: none.
CREATE FUNCTION commitcast.revoked(subject text, topic text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$ SELECT EXISTS (SELECT FROM commitcast.revocation r
        WHERE r.topic = revoked.topic AND r.subject = revoked.subject AND r.revoked) $$;

-- append: adds one event to the caller's transaction and returns its id. Call it after the transaction's last write
-- to the rows that the event is about: offsets follow the order of these calls (docs/guarantees.md, G3).
-- Called by writers. Locks: none but the row it inserts. Errors: those of check_event.
CREATE OR REPLACE FUNCTION commitcast.append(topic text, type text, data json, key text DEFAULT NULL, headers json DEFAULT NULL)
    RETURNS bigint LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    new_id bigint;
BEGIN
    IF topic IS NULL OR type IS NULL OR data IS NULL THEN
        PERFORM commitcast.check_event(NULL, topic, type, key, data, headers);  -- says what is missing; the rest, the constraint
    END IF;
    IF starts_with(type, 'commitcast.') THEN
        RAISE EXCEPTION 'commitcast: types that begin with "commitcast." are the system''s own' USING ERRCODE = '22023';
    END IF;
    INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
    VALUES (commitcast.partition_of(append.topic), append.topic, append.type, append.key, append.data, append.headers)
    RETURNING id INTO new_id;
    RETURN new_id;
END $$;

REVOKE ALL ON FUNCTION commitcast.append_fences(text[], text[], text[], text[], text[]), commitcast.change_access(text, text, text),
    commitcast.revoke(text, text), commitcast.restore(text, text), commitcast.revoked(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION commitcast.append_fences(text[], text[], text[], text[], text[]) TO commitcast_writer;
GRANT EXECUTE ON FUNCTION commitcast.revoke(text, text), commitcast.restore(text, text) TO commitcast_writer, commitcast_operator;
GRANT EXECUTE ON FUNCTION commitcast.revoked(text, text) TO commitcast_writer, commitcast_reader, commitcast_operator;
GRANT SELECT ON commitcast.revocation TO commitcast_reader, commitcast_operator;
