-- Forgets who was revoked. Their tokens open every topic that these name; the events that told of it fill their offsets.

DROP FUNCTION commitcast.revoked(text, text), commitcast.restore(text, text), commitcast.revoke(text, text),
    commitcast.change_access(text, text, text), commitcast.append_fences(text[], text[], text[], text[], text[]);
ALTER TABLE commitcast.outbox DROP CONSTRAINT outbox_reserved;
DROP TABLE commitcast.revocation;

-- append: adds one event to the caller's transaction and returns its id. Call it after the transaction's last write
-- to the rows that the event is about: offsets follow the order of these calls (docs/guarantees.md, G3).
-- Called by writers. Locks: none but the row it inserts. Errors 22023 with the messages of outbox/limits.go.
CREATE OR REPLACE FUNCTION commitcast.append(topic text, type text, data json, key text DEFAULT NULL, headers json DEFAULT NULL)
    RETURNS bigint LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    new_id bigint;
BEGIN
    IF topic IS NULL OR octet_length(topic) > 128 OR topic !~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$' THEN
        RAISE EXCEPTION 'commitcast: topic "%" does not match ^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$',
            left(coalesce(topic, ''), 144) USING ERRCODE = '22023';
    END IF;
    IF coalesce(octet_length(type), 0) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION 'commitcast: type must have 1 to 128 bytes, not %', coalesce(octet_length(type), 0)
            USING ERRCODE = '22023';
    END IF;
    IF octet_length(key) NOT BETWEEN 1 AND 128 THEN
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
    IF json_typeof(headers) <> 'object' THEN
        RAISE EXCEPTION 'commitcast: headers must be a JSON object' USING ERRCODE = '22023';
    END IF;
    IF octet_length(headers::text) > 4096 THEN
        RAISE EXCEPTION 'commitcast: headers have % bytes, more than the limit of 4096', octet_length(headers::text)
            USING ERRCODE = '22023';
    END IF;
    INSERT INTO commitcast.outbox (partition, topic, type, key, data, headers)
    VALUES (commitcast.partition_of(append.topic), append.topic, append.type, append.key, append.data, append.headers)
    RETURNING id INTO new_id;
    RETURN new_id;
END $$;
