-- Forgets who was revoked. Their tokens open every topic that these name; the events that told of it fill their offsets.

DROP FUNCTION commitcast.revoked(text, text), commitcast.restore(text, text), commitcast.revoke(text, text),
    commitcast.change_access(text, text, text), commitcast.append_fences(text[], text[], text[], text[], text[]);
DROP TABLE commitcast.revocation;

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
    INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
    VALUES (commitcast.partition_of(append.topic), append.topic, append.type, append.key, append.data, append.headers)
    RETURNING id INTO new_id;
    RETURN new_id;
END $$;
