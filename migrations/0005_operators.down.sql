-- Forgets what operators did. Partitions that are paused go on; topics that they set aside stay so until redrive.
DROP FUNCTION commitcast.retry_republish(text);
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
REVOKE DELETE ON commitcast.dead_letter FROM commitcast_operator;
