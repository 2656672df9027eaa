-- Forgets what operators did. Partitions that are paused go on; topics that they set aside stay so until redrive.
DROP FUNCTION commitcast.park_topic(text, text);
DROP FUNCTION commitcast.resume_partition(smallint, timestamptz);
DROP FUNCTION commitcast.pause_partition(smallint, text, text);
CREATE OR REPLACE FUNCTION commitcast.begin_drain(p smallint, new_term bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM commitcast.check_epoch();
    PERFORM set_config('lock_timeout', '50ms', true);
    UPDATE commitcast.partition SET term = new_term WHERE id = p AND term < new_term;
    RETURN FOUND;
END $$;
DROP INDEX commitcast.parked_died;
DROP INDEX commitcast.dead_letter_open;
DROP TABLE commitcast.audit;
DROP TABLE commitcast.redrive;
ALTER TABLE commitcast.partition DROP COLUMN paused_at, DROP COLUMN paused_by, DROP COLUMN paused_why;
REVOKE UPDATE (died_at, attempts) ON commitcast.parked FROM commitcast_operator;
REVOKE DELETE ON commitcast.dead_letter FROM commitcast_operator;
DO $$ BEGIN
    IF to_regclass('commitcast.river_job') IS NOT NULL THEN
        REVOKE INSERT, UPDATE ON commitcast.river_job FROM commitcast_operator;
        REVOKE USAGE ON SEQUENCE commitcast.river_job_id_seq FROM commitcast_operator;
    END IF;
END $$;
CREATE OR REPLACE FUNCTION commitcast.settle_grants() RETURNS void
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
