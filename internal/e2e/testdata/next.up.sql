-- A migration as the next version may bring one, for tests: it adds, and takes nothing away (docs/deploying.md, "Versions").
-- Each table that running processes read or write gets a column, and so each plan of theirs is void.
ALTER TABLE commitcast.outbox ADD COLUMN of_next text;
ALTER TABLE commitcast.journal ADD COLUMN of_next text;
ALTER TABLE commitcast.topic ADD COLUMN of_next text;
ALTER TABLE commitcast.partition ADD COLUMN of_next text;
ALTER TABLE commitcast.epoch ADD COLUMN of_next text;
ALTER TABLE commitcast.parked ADD COLUMN of_next text;
ALTER TABLE commitcast.dead_letter ADD COLUMN of_next text;
CREATE TABLE commitcast.of_next (id bigint PRIMARY KEY);
