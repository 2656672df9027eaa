-- Called by: Console.Doctor. Locks: none.
-- What the database is set to, what this role may, and who stands in the way of vacuum.
SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding'), pg_is_in_recovery(),
    current_user, current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int,
    current_setting('autovacuum')::bool, current_setting('fsync')::bool, current_setting('full_page_writes')::bool,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float8 FROM pg_stat_activity
        WHERE xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()), 0),
    (SELECT count(*) FROM pg_prepared_xacts)::int,
    coalesce((SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'commitcast.outbox'::regclass), 0),
    coalesce((SELECT reloptions::text LIKE '%autovacuum_enabled=false%' FROM pg_class WHERE oid = 'commitcast.outbox'::regclass), false),
    has_function_privilege('commitcast.append(text,text,json,text,json)', 'EXECUTE'),
    has_table_privilege('commitcast.journal', 'SELECT') AND has_table_privilege('commitcast.topic', 'SELECT') AND has_table_privilege('commitcast.epoch', 'SELECT'),
    has_function_privilege('commitcast.begin_drain(smallint,bigint)', 'EXECUTE') AND has_table_privilege('commitcast.river_job', 'INSERT, DELETE'),
    has_function_privilege('commitcast.pause_partition(smallint,text,text)', 'EXECUTE') AND has_any_column_privilege('commitcast.audit', 'INSERT'),
    (SELECT count(*) FROM pg_inherits WHERE inhparent = 'commitcast.journal'::regclass)::int,
    to_regclass('commitcast.journal_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')) IS NOT NULL,
    to_regclass('commitcast.journal_' || to_char((now() AT TIME ZONE 'UTC') + interval '1 day', 'YYYYMMDD')) IS NOT NULL,
    (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits WHERE inhparent = 'commitcast.journal'::regclass)::bigint,
    clock_timestamp()
