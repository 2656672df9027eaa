-- Takes from the roles what they had in this database, and gives functions to the public again. The roles stay: they belong to
-- the cluster, and other databases, or roles that log in, may depend on them. When none does, an administrator may drop them.

REVOKE ALL ON ALL TABLES IN SCHEMA commitcast FROM commitcast_writer, commitcast_worker, commitcast_reader, commitcast_operator;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA commitcast FROM commitcast_writer, commitcast_worker, commitcast_reader, commitcast_operator;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA commitcast FROM commitcast_writer, commitcast_worker, commitcast_reader, commitcast_operator;
REVOKE ALL ON SCHEMA commitcast FROM commitcast_writer, commitcast_worker, commitcast_reader, commitcast_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA commitcast REVOKE SELECT ON TABLES FROM commitcast_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA commitcast REVOKE SELECT ON SEQUENCES FROM commitcast_operator;

DROP FUNCTION commitcast.settle_grants(), commitcast.redrive_topics(text[], integer), commitcast.detach_leaf(regclass), commitcast.drop_leaf(regclass);
ALTER FUNCTION commitcast.check_epoch() SECURITY INVOKER RESET search_path;
ALTER FUNCTION commitcast.begin_epoch(text, text) SECURITY INVOKER RESET search_path;
ALTER FUNCTION commitcast.sequence(smallint[], bigint[], integer, text, bigint[], bigint) SECURITY INVOKER RESET search_path;
ALTER FUNCTION commitcast.begin_drain(smallint, bigint) SECURITY INVOKER RESET search_path;
ALTER FUNCTION commitcast.horizon() SECURITY INVOKER RESET search_path;
ALTER FUNCTION commitcast.ensure_leaves(integer) SECURITY INVOKER RESET search_path;
ALTER FUNCTION commitcast.forget_operations(interval, integer) SECURITY INVOKER RESET search_path;

-- leaf_is_published: whether the stream has confirmed every event of a leaf, or its topic is set aside.
-- Called by doom_leaf, and by the worker's upkeep before it drops a leaf that is detached. Locks: none.
CREATE OR REPLACE FUNCTION commitcast.leaf_is_published(leaf regclass) RETURNS boolean
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
CREATE OR REPLACE FUNCTION commitcast.doom_leaf(leaf regclass) RETURNS boolean
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

DROP FUNCTION commitcast.is_leaf(regclass);
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA commitcast TO PUBLIC;
