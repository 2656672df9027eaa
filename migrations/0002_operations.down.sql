-- Forgets which operations were carried out: those that are repeated after this are carried out again.
DROP AGGREGATE commitcast.hash_rows(text);
DROP FUNCTION commitcast.hash_rows_text(bigint);
DROP FUNCTION commitcast.hash_rows_combine(bigint, bigint);
DROP FUNCTION commitcast.hash_rows_add(bigint, text);
DROP FUNCTION commitcast.forget_operations(interval, integer);
DROP FUNCTION commitcast.begin_operation(text, text, bytea);
DROP TABLE commitcast.operation;
