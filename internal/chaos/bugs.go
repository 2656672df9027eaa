package main

import "time"

// bug is a mistake that somebody could make in the product, or in a client, as a patch of the source. The checker must
// catch it: that is how the checker itself is checked.
type bug struct {
	name    string
	about   string
	patches []patch
	// faults are the kinds that bring it out, as for -faults; "" for all. quiet rounds come in any case.
	faults  string
	standby bool
	rounds  int           // at most, of one try; default 10
	renew   int           // as for -renew
	hold    time.Duration // as for -hold
	// caughtAs are the violations that may tell of it, any one of them.
	caughtAs []string
	// fast: it is caught within seconds, and so part of every test run.
	fast bool
}

var bugs = []bug{
	{
		name: "no-contiguity-check", about: "a broadcaster takes a run that does not follow, and reads over the hole",
		patches: []patch{
			{"broadcaster/log.go", "	if r.First > l.next {\n		return false, true\n	}", "	if r.First > l.next {\n		l.clear(l.epoch, r.First)\n	}"},
			{"broadcaster/log.go", "		return p, cursor, nil, readBehind", "		cursor = l.first - 1"},
		},
		faults: "hole-broadcaster-redis,redis-kill,redis-pubsub-kill", rounds: 12, caughtAs: []string{"wire-hole"},
	},
	{
		name: "replay-before-confirmed", about: "a subscription goes live before its channel is confirmed, and nobody looks at the head again",
		patches: []patch{
			{"broadcaster/splice.go", "f.confirmed || polled", "true || polled"},
			{"broadcaster/splice.go", "return !f.looked || followed", "return followed"},
			{"broadcaster/topic.go", "		t.shard.joiner.kick()\n		t.shard.heads.kick()", "		t.shard.joiner.kick()"},
			{"stream/redis_wanted.go", "	s.dirty = append(s.dirty, c)\n	s.wakeWriter()", "	s.dirty = append(s.dirty, c)\n	time.AfterFunc(300*time.Millisecond, s.wakeWriter)"},
			{"stream/redis_wanted.go", "	\"sync\"\n)", "	\"sync\"\n	\"time\"\n)"},
		},
		faults: "none", rounds: 5, renew: 1, caughtAs: []string{"push-by-healing", "push-slow", "net-needed"},
	},
	{
		name: "cursor-by-max-id", about: "sequencing never looks below the highest id that it has seen, which a late commit is",
		patches: []patch{{"migrations/0001_init.up.sql",
			"            floor = CASE WHEN NOT told OR w.done IS NULL THEN q.floor\n",
			"            floor = CASE WHEN true THEN greatest(q.floor, c.top, (SELECT max(j.id) FROM commitcast.journal j WHERE j.partition = q.id))\n"},
			{"migrations/0001_init.up.sql",
				"                floor = CASE WHEN NOT told OR dones[1] IS NULL THEN q.floor\n",
				"                floor = CASE WHEN true THEN greatest(q.floor, o.id)\n"}},
		faults: "none", rounds: 4, caughtAs: []string{"event-lost", "stalled"}, fast: true,
	},
	{
		name: "floor-waits-for-nobody", about: "the floor passes an event whose transaction has not committed",
		patches: []patch{{"worker/horizon.go", "	if len(h.waiting) > 0 {\n		return\n	}\n", ""}},
		faults:  "none", rounds: 8, caughtAs: []string{"event-lost", "stalled"},
	},
	{
		name: "skip-on-gap", about: "a worker takes a hole in the stream for an answer",
		patches: []patch{{"worker/publish.go",
			"	case a.Outcome == stream.Gap && a.Next >= 1 && a.Next < o.First && o.First-a.Next <= maxRefill:\n		return refill, a.Next",
			"	case a.Outcome == stream.Gap:\n		return confirmed, 0"}},
		faults: "redis-rollback", caughtAs: []string{"stream-behind"},
	},
	{
		name: "epoch-ignored", about: "a database that went back is taken for the same history",
		patches: []patch{{"migrations/0001_init.up.sql",
			"    IF current_setting('commitcast.checked_epoch', true) = e.name THEN",
			"    IF e.name IS NOT NULL THEN"}},
		standby: true, rounds: 3, caughtAs: []string{"surfaced-differs", "stream-differs", "histories-mixed"},
	},
	{
		name: "broadcaster-dedup-off", about: "a broadcaster takes a run again that it has",
		patches: []patch{{"broadcaster/log.go",
			"	if r.Last() < l.next {\n		return false, false\n	}\n	before := l.bytes\n	for _, f := range r.Frames[l.next-r.First:] {",
			"	before := l.bytes\n	for _, f := range r.Frames {"}},
		faults: "worker-kill,drains-terminate,redis-pause", caughtAs: []string{"wire-duplicate", "wire-hole"},
	},
	{
		name: "publish-before-durable", about: "events are shown before their sequencing would survive a crash",
		patches: []patch{
			{"migrations/0001_init.up.sql",
				"    -- Sequenced events must survive a crash before anyone sees them, whatever the database's default is.\n    PERFORM set_config('synchronous_commit', 'on', true);",
				"    PERFORM set_config('synchronous_commit', 'off', true);"},
			{"worker/owner.go", `"synchronous_commit": "on",`, `"synchronous_commit": "off",`},
		},
		faults: "postgres-crash", rounds: 20, caughtAs: []string{"surfaced-differs", "needless-reset", "histories-mixed"},
	},
	{
		name: "epoch-number-reused", about: "epochs are told apart by their number alone, and two histories count the same",
		patches: []patch{{"migrations/0001_init.up.sql",
			"new_name := n || '-' || encode(substr(uuid_send(gen_random_uuid()), 1, 4), 'hex');", "new_name := n || '-00000000';"}},
		standby: true, rounds: 6, caughtAs: []string{"surfaced-differs", "stream-differs", "histories-mixed", "stream-hole"},
	},
	{
		name: "pending-across-epochs", about: "a client keeps ids pending although another history gives them again",
		patches: []patch{{"internal/chaos/client.go",
			"if epoch == \"\" || epoch == r.epoch || len(r.left) == 0 {", "if true {"}},
		standby: true, rounds: 8, caughtAs: []string{"state-differs"},
	},
	{
		name: "set-aside-in-memory", about: "a topic that was refused counts as published, and only this process knows that it is not",
		patches: []patch{{"worker/park.go", "		err = p.ledger.park(ctx, p.partition, refusals)\n", ""}},
		faults:  "redis-refuse", caughtAs: []string{"published-unconfirmed"},
	},
	{
		name: "last-entry", about: "the script compares with the last entry instead of the last id that was given",
		patches: []patch{{"stream/publish.lua",
			"    if head and tail and tail[1] == named['last-generated-id'] then", "    if head and tail then"},
			{"stream/publish.lua", "      if low and high and high - low + 1 == named['length'] then top = high end", "      if low and high then top = high end"}},
		faults: "redis-xdel", caughtAs: []string{"stalled", "stream-hole", "stream-behind"},
	},
	{
		name: "early-append", about: "outbox.Tx inserts where Publish is called, before the last domain write",
		patches: []patch{{"outbox/tx.go",
			"func (t *Transaction) Publish(e Event) error {\n	_, err := t.buffer.add(e)\n	return err\n}",
			"func (t *Transaction) Publish(e Event) error {\n	_, err := Append(context.Background(), t.Tx, e)\n	return err\n}"}},
		faults: "none", rounds: 6, caughtAs: []string{"version-order"}, fast: true,
	},
	{
		name: "pending-left-out", about: "a snapshot does not tell which of its events have no offset yet",
		patches: []patch{{"outbox/snapshot.go", "		p.Pending = ids\n", "		_ = ids\n"}},
		faults:  "worker-stop,worker-kill,clients-cut", caughtAs: []string{"state-differs"},
	},
	{
		name: "trust-safe-to-retry", about: "a COMMIT whose answer was lost is called failed",
		patches: []patch{{"outbox/tx.go",
			"	return true, &unknownError{err}\n}\n\n// savepoint is", "	return true, fmt.Errorf(\"outbox: %s: %w\", doing, err)\n}\n\n// savepoint is"}},
		faults: "writers-cut", rounds: 16, caughtAs: []string{"failed-present"},
	},
	{
		name: "publish-without-xadd", about: "the script announces what it has not stored",
		patches: []patch{{"stream/publish.lua", "  for offset = start, last do\n", "  for offset = start, start - 1 do\n"}},
		faults:  "none", rounds: 2, caughtAs: []string{"stream-missing"}, fast: true,
	},
	{
		name: "down-ignored", about: "a broadcaster does not notice that push is down",
		patches: []patch{{"broadcaster/topic.go", "	b.pushTried.Store(true)\n	if b.pushUp.lost(of) {", "	if true {\n		return\n	}\n	b.pushTried.Store(true)\n	if b.pushUp.lost(of) {"}},
		faults:  "redis-kill", hold: 4 * time.Second, rounds: 7, caughtAs: []string{"outage-unsaid", "polling-slow", "push-stays-down"},
	},
	{
		name: "subscriptions-not-rebuilt", about: "a new connection to Redis subscribes to nothing that the old one had",
		patches: []patch{{"stream/redis_wanted.go", "	for _, c := range s.channels {\n		s.mark(c)\n	}", ""}},
		faults:  "redis-kill,redis-pubsub-kill", rounds: 30, caughtAs: []string{"push-slow", "push-by-healing", "push-stays-down", "stalled"},
	},
	{
		name: "heads-never-polled", about: "a broadcaster asks for heads only when something else tells it to",
		patches: []patch{{"broadcaster/heads.go", "		case <-timer.C:\n", "		case <-timer.C:\n			continue\n"}},
		faults:  "redis-kill", hold: 4 * time.Second, rounds: 7, caughtAs: []string{"polling-slow", "stalled"},
	},
	{
		name: "order-by-begin", about: "offsets follow the time at which transactions began",
		patches: []patch{
			{"migrations/0001_init.up.sql", "    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),\n    -- Which", "    created_at  timestamptz NOT NULL DEFAULT now(),\n    -- Which"},
			{"migrations/0001_init.up.sql", "            row_number() OVER (PARTITION BY partition ORDER BY id) AS nth,", "            row_number() OVER (PARTITION BY partition ORDER BY created_at, id) AS nth,"},
			{"migrations/0001_init.up.sql", "            row_number() OVER (PARTITION BY topic ORDER BY id) - count(*)", "            row_number() OVER (PARTITION BY topic ORDER BY created_at, id) - count(*)"},
		},
		faults: "worker-stop,worker-kill,hole-worker-postgres", caughtAs: []string{"version-order", "real-time-order"},
	},
	{
		name: "client-applies-again", about: "a client resumes one event too early, and applies what it has",
		patches: []patch{
			{"internal/chaos/client.go", "s.id, topic, r.cursor.String())", "s.id, topic, wire.Cursor{Epoch: r.cursor.Epoch, Offset: max(0, r.cursor.Offset-1)}.String())"},
			{"internal/chaos/client.go", "	if m.Offset <= r.cursor.Offset {\n		return nil\n	}", ""},
		},
		faults: "none", rounds: 4, caughtAs: []string{"surfaced-hole", "wire-answer"},
	},
	{
		name: "range-over-holes", about: "what is read from a stream may have holes",
		patches: []patch{{"stream/range.lua", "    if entry[1] ~= string.format('%.0f-0', want) then return frames end\n", ""}},
		faults:  "redis-xdel,broadcaster-kill", rounds: 24, caughtAs: []string{"wire-hole", "wire-duplicate", "surfaced-differs"},
	},
	{
		name: "cursor-not-asked", about: "a subscription begins at the head, not at its cursor",
		patches: []patch{{"broadcaster/splice.go", "r.cursor, r.origin = r.asked.Offset, r.asked.Epoch", "r.origin = r.asked.Epoch"}},
		faults:  "clients-cut", rounds: 4, caughtAs: []string{"wire-answer", "wire-hole"},
	},
	{
		name: "snapshot-read-committed", about: "state and cursor are read at two moments",
		patches: []patch{{"outbox/snapshot.go", "pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}", "pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}"}},
		faults:  "clients-cut", caughtAs: []string{"state-differs"},
	},
	{
		name: "unknown-is-committed", about: "a COMMIT without an answer is called done",
		patches: []patch{{"outbox/tx.go",
			"	return true, &unknownError{err}\n}\n\n// savepoint is", "	return true, nil\n}\n\n// savepoint is"}},
		faults: "writers-cut,postgres-crash", rounds: 20, caughtAs: []string{"committed-absent"},
	},
	{
		name: "replay-drops-headers", about: "events out of the journal lack what pushed ones have",
		patches: []patch{{"internal/journal/journal.go", "			*of = append(*of, Encode(&e))", "			e.Headers = nil\n			*of = append(*of, Encode(&e))"}},
		faults:  "redis-flush,redis-kill", caughtAs: []string{"surfaced-differs"},
	},
	{
		name: "rollback-publishes", about: "events survive the rollback of their transaction",
		patches: []patch{{"outbox/tx.go", "	if err := fn(t); err != nil {\n		return err\n	}",
			"	if err := fn(t); err != nil {\n		if len(t.buffer.rows) > 0 {\n			sql, args := t.buffer.insert()\n			db.Exec(ctx, sql, args...)\n		}\n		return err\n	}"}},
		faults: "none", rounds: 2, caughtAs: []string{"event-of-nothing"},
	},
	{
		name: "reset-instead-of-replay", about: "a subscriber that is behind is sent back to its snapshot",
		patches: []patch{{"broadcaster/join.go", "	outcome := sub.join(", "	if !sub.asked.IsZero() && sub.asked.Offset < p.Head-2 {\n		p.Reason = \"trimmed\"\n	}\n	outcome := sub.join("}},
		faults:  "clients-cut", rounds: 4, caughtAs: []string{"needless-reset"},
	},
	{
		name: "cursor-of-joined-epoch", about: "a live subscriber is checked in the epoch that it joined last, of which nothing need have been delivered",
		patches: []patch{{"broadcaster/splice.go", "Epoch: r.origin, Offset: r.cursor", "Epoch: r.epoch, Offset: r.cursor"}},
		standby: true, rounds: 8, caughtAs: []string{"needless-reset"},
	},
	{
		name: "published-when-offered", about: "what was sequenced before counts as published, whether or not the stream has answered",
		patches: []patch{
			{"migrations/0001_init.up.sql", "            published = CASE WHEN told THEN least(greatest(w.done, q.published), q.seq) ELSE q.published END,",
				"            published = CASE WHEN told THEN q.seq ELSE q.published END,"},
			{"migrations/0001_init.up.sql", "                published = CASE WHEN told THEN least(greatest(dones[1], q.published), q.seq) ELSE q.published END,",
				"                published = CASE WHEN told THEN q.seq ELSE q.published END,"},
		},
		faults: "redis-pause", caughtAs: []string{"published-unconfirmed", "published-unstored"},
	},
	{
		name: "old-epoch-delivered", about: "a broadcaster goes on with the old epoch's channels, and takes their runs into the new log",
		patches: []patch{
			{"broadcaster/shard.go", "	b.subscription.Remove(drop...)\n", ""},
			{"broadcaster/log.go", "	if l.epoch != r.Epoch {\n		return false, false\n	}\n	if r.First", "	if l.epoch == \"\" {\n		return false, false\n	}\n	if r.First"},
			{"broadcaster/splice.go", "	if r.Epoch != f.channel.Epoch {\n		return false, false\n	}\n	f.raise", "	f.raise"},
			{"broadcaster/splice.go", "	f.log.start(r.Epoch, r.First)", "	f.log.start(f.channel.Epoch, r.First)"},
		},
		standby: true, rounds: 14, caughtAs: []string{"history-returned"},
	},
}
