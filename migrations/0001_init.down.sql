-- Removes Commitcast and every event it holds. Domain tables are not touched.
DROP SCHEMA commitcast CASCADE;
