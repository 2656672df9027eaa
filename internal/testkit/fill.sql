-- Called by: testkit.Fill, into an empty database whose schema is there. What an operator's lists are long of: 100,000 topics with 3
-- events each, of which 500 a partition are not published, 50,000 dead letters, 20,000 topics that are set aside, 20,000 events in the
-- outbox, as many lines of the record and as many discarded jobs.
INSERT INTO commitcast.topic (topic, partition, head, head_epoch)
    SELECT 'market:' || i, commitcast.partition_of('market:' || i), 3, (SELECT name FROM commitcast.epoch) FROM generate_series(1, 100000) i;
INSERT INTO commitcast.journal (topic, "offset", epoch, partition, seq, id, type, data, created_at, sequenced_at)
    SELECT topic, o, head_epoch, partition, (row_number() OVER (PARTITION BY partition ORDER BY topic, o)), row_number() OVER (), 'test', '{"n":1}', now(), now()
    FROM commitcast.topic, generate_series(1, 3) o;
UPDATE commitcast.partition p SET seq = (SELECT max(seq) FROM commitcast.journal j WHERE j.partition = p.id),
    published = (SELECT max(seq) FROM commitcast.journal j WHERE j.partition = p.id) - 500;
INSERT INTO commitcast.dead_letter (topic, "offset", epoch, partition, seq, id, type, data, created_at, error, attempts, died_at, redriven_at)
    SELECT 'market:' || (i % 20000), i, '1-cafe', 1, i, i, 'test', '1', now(), 'NOPERM', 16, now() - i * interval '1 s', CASE WHEN i % 10 = 0 THEN now() END
    FROM generate_series(1, 50000) i;
INSERT INTO commitcast.parked (topic, partition, parked_from, error, died_at)
    SELECT 'market:' || i, commitcast.partition_of('market:' || i), 1, 'NOPERM', CASE WHEN i % 2 = 0 THEN now() END FROM generate_series(1, 20000) i;
SELECT commitcast.append('market:' || i, 'test', '1') FROM generate_series(1, 20000) i;
INSERT INTO commitcast.audit (who, action, target) SELECT 'alice', 'pause', 'partition 3' FROM generate_series(1, 20000);
INSERT INTO commitcast.river_job (kind, args, max_attempts, state, queue, finalized_at)
    SELECT 'topic_republish', jsonb_build_object('topic', 'market:' || i), 16, 'discarded', 'republish', now() FROM generate_series(1, 20000) i;
UPDATE commitcast.dead_letter SET job = (SELECT id FROM commitcast.river_job ORDER BY id LIMIT 1) WHERE topic = 'market:7';
UPDATE commitcast.river_job SET errors = ARRAY['{"at":"2026-01-01T00:00:00Z","attempt":1,"error":"NOPERM"}', '{"at":"2026-01-01T00:00:01Z","attempt":2,"error":"NOPERM"}']::jsonb[]
    WHERE id = (SELECT min(id) FROM commitcast.river_job);
ANALYZE;
