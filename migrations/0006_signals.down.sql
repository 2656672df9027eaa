-- Forgets the canary. Its events stay in the journal until retention.
DROP FUNCTION commitcast.sing();
DROP TABLE commitcast.canary;
REVOKE SELECT (created_at) ON commitcast.outbox FROM commitcast_worker;
