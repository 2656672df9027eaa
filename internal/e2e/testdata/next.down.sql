-- Undoes next.up.sql.
DROP TABLE commitcast.of_next;
ALTER TABLE commitcast.dead_letter DROP COLUMN of_next;
ALTER TABLE commitcast.parked DROP COLUMN of_next;
ALTER TABLE commitcast.epoch DROP COLUMN of_next;
ALTER TABLE commitcast.partition DROP COLUMN of_next;
ALTER TABLE commitcast.topic DROP COLUMN of_next;
ALTER TABLE commitcast.journal DROP COLUMN of_next;
ALTER TABLE commitcast.outbox DROP COLUMN of_next;
