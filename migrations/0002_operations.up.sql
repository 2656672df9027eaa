-- Operations that take effect once, and the hash of a digest.

-- One row for each operation id of the last day, written in the transaction that carries the operation out.
CREATE TABLE commitcast.operation (
    scope       text COLLATE "C" NOT NULL,          -- whose key it is
    key         text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,                     -- of the request; the same key with another one is refused
    result      json,                               -- what the author was told
    events      bigint[] NOT NULL DEFAULT '{}',     -- ids of the events it published
    began_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, key),
    CONSTRAINT operation_scope CHECK (octet_length(scope) BETWEEN 1 AND 128),
    CONSTRAINT operation_key CHECK (octet_length(key) BETWEEN 1 AND 255),
    CONSTRAINT operation_fingerprint CHECK (octet_length(fingerprint) <= 128),
    CONSTRAINT operation_result CHECK (octet_length(result::text) <= 65536)
) WITH (fillfactor = 70);                           -- each row is completed once, in place
CREATE INDEX operation_began_at ON commitcast.operation (began_at);

-- begin_operation: begun, if the operation is new, and then the caller carries it out in the same transaction; or what it
-- came to, and whether it was the same request. Waits at most 5 s for another transaction that has begun it and not
-- ended; then 55P03 (lock_not_available).
-- Called by writers, as the first statement of a transaction at READ COMMITTED. Locks: the operation's row.
-- Invariant: of all transactions with the same scope and key at most one commits with begun true.
CREATE FUNCTION commitcast.begin_operation(p_scope text, p_key text, p_fingerprint bytea DEFAULT '',
        OUT begun boolean, OUT same boolean, OUT result json, OUT events bigint[])
    LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '5s'
    AS $$
DECLARE
    o commitcast.operation;
BEGIN
    LOOP
        INSERT INTO commitcast.operation (scope, key, fingerprint) VALUES (p_scope, p_key, p_fingerprint)
        ON CONFLICT (scope, key) DO NOTHING;
        IF FOUND THEN
            begun := true; same := true;
            RETURN;
        END IF;
        -- A statement of its own: it sees what the one before waited for.
        SELECT * INTO o FROM commitcast.operation WHERE scope = p_scope AND key = p_key;
        IF FOUND THEN
            begun := false; same := o.fingerprint = p_fingerprint; result := o.result; events := o.events;
            RETURN;
        END IF;
        -- Its retention ended between the two.
    END LOOP;
END $$;

-- forget_operations: removes operations older than keep, the oldest first, at most so many; returns how many.
-- Called now and then after an operation, or by an operator. Locks: the rows it removes; skips those that others hold.
CREATE FUNCTION commitcast.forget_operations(keep interval, most integer) RETURNS bigint
    LANGUAGE sql VOLATILE
    AS $$
    WITH gone AS (
        DELETE FROM commitcast.operation
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM commitcast.operation WHERE began_at < clock_timestamp() - keep
            ORDER BY began_at LIMIT most FOR UPDATE SKIP LOCKED))
        RETURNING 1
    )
    SELECT count(*) FROM gone
    $$;

-- hash_rows: a hash of a set of rows, in whatever order they come: the sum, modulo 2^48, of the first 48 bits of each one's
-- SHA-256, as 12 hexadecimal digits. Any language can compute it, and JavaScript in plain numbers. Rows that change
-- places, or changes that cancel out in a sum of the values, do not leave it as it was. It finds accidents, not forgery.
-- NULL is left out; no rows are 000000000000.
CREATE FUNCTION commitcast.hash_rows_add(sum bigint, line text) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT (sum + ('x' || encode(substr(sha256(convert_to(line, 'UTF8')), 1, 6), 'hex'))::bit(48)::bigint) % 281474976710656 $$;
CREATE FUNCTION commitcast.hash_rows_combine(a bigint, b bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT (a + b) % 281474976710656 $$;
CREATE FUNCTION commitcast.hash_rows_text(sum bigint) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT lpad(to_hex(sum), 12, '0') $$;
CREATE AGGREGATE commitcast.hash_rows(text) (
    SFUNC = commitcast.hash_rows_add, STYPE = bigint, INITCOND = '0', COMBINEFUNC = commitcast.hash_rows_combine,
    FINALFUNC = commitcast.hash_rows_text, PARALLEL = SAFE
);
