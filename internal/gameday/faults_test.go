package gameday

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/wire"
)

// faults are the eleven, in the order of docs/operations.md.
var faults = []fault{
	{
		name: "worker-dead", quick: true,
		alert:  "CommitcastNoWorker",
		breaks: func(s *system) { s.worker.Cmd.Process.Kill(); <-s.worker.Done },
		shows:  []look{{"commitcast ops status", []string{"no worker was found", "start one: commitcast worker"}}},
		screen: "no worker was found",
		cure: func(s *system, book section) {
			if command := book.command("commitcast worker"); command != "commitcast worker" {
				s.t.Fatal(command)
			}
			s.startWorker() // with its own flags and environment
		},
		after: func(s *system) { // how fresh what is committed is at a socket
			if out := s.operator("commitcast ops status"); !strings.Contains(out, "→ sockets         good") || !strings.Contains(out, "of 2 nodes") {
				s.t.Errorf("the canary is not shown:\n%s", out)
			}
		},
	},
	{
		name: "redis-down", quick: true, flows: true,
		alert:  "CommitcastRedisAway",
		breaks: func(s *system) { s.redis.Kill() },
		shows:  []look{{"commitcast ops status", []string{"Redis does not answer", "connection refused", "polling"}}},
		screen: "Redis does not answer",
		cure: func(s *system, book section) {
			book.says("Bring Redis back")
			s.must(s.redis.Start(s.t.Context()))
		},
	},
	{
		// What Redis has confirmed since it was saved is gone, and it does not say so.
		name: "redis-rolled-back", flows: true,
		alert: "CommitcastStreamRefilled",
		breaks: func(s *system) {
			s.redisDo("SAVE")
			s.arrives()
			s.redis.Kill()
			s.must(s.redis.Start(s.t.Context()))
		},
		shows:  []look{{"commitcast ops status", []string{"Redis lacked events that it had confirmed", "refilled"}}},
		screen: "Redis lacked events that it had confirmed",
		cure: func(s *system, book section) {
			book.says("Once: nothing.")
			s.sound(book.command("commitcast ops doctor"))
		},
	},
	{
		// Redis takes all topics but one.
		name: "topic-poisoned", flows: true,
		setUp: options{worker: []string{"--republish-attempts=3"}}, // instead of half an hour
		alert: "CommitcastDeadLetters",
		breaks: func(s *system) {
			s.redisDo("ACL", "SETUSER", "default", "resetkeys", "~cc:{p0}:tick", "~cc:*:canary", "~cc:*:commitcast/canary")
		},
		shows: []look{
			{"commitcast ops dead list", []string{topic, "NOPERM"}},
			{"commitcast ops stuck", []string{"topic " + topic + " is given up", "commitcast ops redrive " + topic}},
		},
		screen: "topic " + topic + " is given up",
		cure: func(s *system, book section) {
			book.says("Remove the cause.")
			s.redisDo("ACL", "SETUSER", "default", "allkeys")
			s.acts(book.command("commitcast ops redrive TOPIC", "TOPIC", topic))
		},
	},
	{
		// The primary is lost; the standby has all that was acknowledged, and takes over.
		name: "database-failed-over", setUp: options{standby: true},
		alert:  "CommitcastDatabaseAway",
		breaks: func(s *system) { s.postgres.Kill() },
		shows:  []look{{"commitcast ops status", []string{"the database does not answer"}}},
		screen: "the database does not answer",
		cure: func(s *system, book section) {
			s.sql(s.standby.URL("postgres"), book.command("SELECT pg_promote()"))
			book.says("lead the address of `--database-url` to it")
			s.address.SetTarget(s.standby.Addr())
			s.address.Cut()
		},
		after: func(s *system) {
			// What it was is told afterwards, too.
			s.watch.fires("CommitcastEpochChanged", time.Now().Add(firesWithin))
			book := runbook(s.t, "CommitcastEpochChanged")
			book.looksAt("commitcast ops epoch list")
			if out := s.operator("commitcast ops epoch list"); !strings.Contains(out, "2-") {
				s.t.Errorf("no second epoch: %s", out)
			}
			s.sound(book.command("commitcast ops doctor"))
		},
	},
	{
		// The leaves of the journal are on a small disk, which something else fills. Writers go on.
		name: "journal-disk-full", setUp: options{prepare: smallDisk},
		alert:  "CommitcastSequencingLags",
		breaks: fillDisk,
		shows:  []look{{"commitcast ops stuck", []string{"is not sequenced", "No space left on device"}}},
		screen: "No space left on device",
		cure: func(s *system, book section) {
			book.says("free space")
			s.must(os.Remove(filepath.Join(s.disk, "ballast")))
		},
	},
	{
		name: "long-transaction", flows: true,
		alert: "CommitcastLongTransaction",
		breaks: func(s *system) {
			conn, err := pgx.Connect(s.t.Context(), s.database+"&application_name=nightly-import")
			s.must(err)
			s.t.Cleanup(func() { conn.Close(context.Background()) })
			for _, sql := range []string{`BEGIN`, `SELECT commitcast.append('imports', 'row', '1')`} {
				_, err := conn.Exec(s.t.Context(), sql)
				s.must(err)
			}
		},
		shows:  []look{{"commitcast ops stuck", []string{"a transaction has appended events and does not end", "nightly-import"}}},
		screen: "a transaction has appended events and does not end",
		cure: func(s *system, book section) {
			pid := regexp.MustCompile(`pid (\d+)`).FindStringSubmatch(s.operator("commitcast ops stuck"))
			if pid == nil {
				s.t.Fatal("whose transaction it is, is not said")
			}
			s.sql(s.database, book.command("SELECT pg_terminate_backend(PID)", "PID", pid[1]))
		},
	},
	{
		// A program opens connections and reads nothing of what it asked for.
		name: "slow-consumers", flows: true,
		setUp:  options{tokens: true},
		alert:  "CommitcastSlowClients",
		breaks: slowProgram,
		shows:  []look{{"commitcast ops stuck", []string{"clients have taken nothing of what they are sent"}}, {"commitcast ops clients --behind", []string{`slow-program +this machine +\S+ +1 +[1-9]`}}},
		screen: "slow-program", page: "#/clients",
		cure: func(s *system, book section) {
			book.says("tell its owner")
			s.stopProgram()
			s.acts(book.command("commitcast ops disconnect SUBJECT", "SUBJECT", "slow-program"))
		},
	},
	{
		// A firewall forgets the connections of b1 with Redis, and tells nobody.
		name: "subscription-black-holed", flows: true,
		alert:  "CommitcastSubscriptionsRebuilt",
		breaks: func(s *system) { s.network.Blackhole() },
		shows:  []look{{"commitcast ops status", []string{"broadcaster b1: it hears nothing from Redis and polls the journal", "polling"}}},
		screen: "it hears nothing from Redis and polls the journal",
		cure: func(s *system, book section) {
			book.says("One node: its network")
			s.network.Cut()
			s.network.Resume()
		},
	},
	{
		// A renewal went wrong: what is served has ended.
		name: "certificate-expired", setUp: options{tls: true}, flows: true,
		alert:  "CommitcastCertificateExpires",
		breaks: func(s *system) { s.certify(time.Now().Add(-time.Minute)) },
		shows:  []look{{"commitcast ops stuck", []string{"its certificate for clients has expired", "--tls-cert"}}},
		screen: "its certificate for clients has expired",
		cure: func(s *system, book section) {
			book.says("Put the new certificate and key into the files of `--tls-cert` and `--tls-key`")
			s.certify(time.Now().AddDate(0, 1, 0))
		},
		after: func(s *system) { // a new connection, too
			h := &http.Client{Transport: &http.Transport{TLSClientConfig: s.authority.Client()}}
			s.t.Cleanup(h.CloseIdleConnections)
			s.follow("b1", s.b1.URL, h)
		},
	},
	{
		// The identity provider is down. Its tokens are short-lived, and those that are connected by them lose their sessions one by one.
		name: "token-expired", setUp: options{tokens: true, nodes: []string{"--auth-grace=1s"}}, flows: true,
		opens:  func(s *system) { s.page = openPage(s) },
		alert:  "CommitcastTokensNotRenewed",
		breaks: func(s *system) { s.page.provider.down.Store(true) },
		shows:  []look{{"commitcast ops stuck", []string{"tokens of clients have expired and are not renewed", `[3-9]\d clients, who see nothing new`, " 0 refused"}}},
		screen: "tokens of clients have expired and are not renewed",
		cure: func(s *system, book section) {
			book.says("Bring the identity provider back")
			s.page.provider.down.Store(false)
		},
		after: func(s *system) { s.page.follows() },
	},
}

func (s *system) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// sql runs a statement as a superuser.
func (s *system) sql(database, statement string, args ...any) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), database)
	s.must(err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(s.t.Context(), statement, args...)
	s.must(err)
}

func (s *system) redisDo(args ...any) {
	s.t.Helper()
	c := redis.NewClient(s.redis.Options())
	defer c.Close()
	s.must(c.Do(s.t.Context(), args...).Err())
}

// sound runs the doctor, who sends an event all the way, and fails if there is a problem.
func (s *system) sound(doctor string) {
	s.t.Helper()
	testkit.Eventually(s.t, curedWithin, func() error {
		if out := s.operator(doctor); !strings.Contains(out, " 0 problems") {
			return fmt.Errorf("%s", out)
		}
		return nil
	}, "%s finds no problem", doctor)
}

// smallDisk moves the leaves of today and tomorrow to a disk of 16 MB: a tmpfs of their own, as a tablespace.
func smallDisk(s *system) {
	conn, err := pgx.Connect(s.t.Context(), s.database)
	s.must(err)
	defer conn.Close(context.Background())
	var data string
	s.must(conn.QueryRow(s.t.Context(), `SHOW data_directory`).Scan(&data))
	info, err := os.Stat(data)
	s.must(err)
	s.disk, err = os.MkdirTemp("/tmp", "commitcast-disk-")
	s.must(err)
	owner := info.Sys().(*syscall.Stat_t)
	if err := syscall.Mount("tmpfs", s.disk, "tmpfs", 0, fmt.Sprintf("size=16m,mode=0700,uid=%d,gid=%d", owner.Uid, owner.Gid)); err != nil {
		os.Remove(s.disk)
		s.t.Fatalf("a disk that can be filled is a tmpfs, which root may mount: %v", err)
	}
	s.t.Cleanup(func() {
		if err := syscall.Unmount(s.disk, syscall.MNT_DETACH); err != nil { // Postgres may still run
			s.t.Errorf("unmounting %s: %v", s.disk, err)
		}
		os.Remove(s.disk)
	})
	_, err = conn.Exec(s.t.Context(), `CREATE TABLESPACE small LOCATION '`+s.disk+`'`)
	s.must(err)
	rows, err := conn.Query(s.t.Context(), `SELECT format('ALTER TABLE %s SET TABLESPACE small', inhrelid::regclass) FROM pg_inherits WHERE inhparent = 'commitcast.journal'::regclass`)
	s.must(err)
	moves, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.must(err)
	for _, move := range moves {
		_, err := conn.Exec(s.t.Context(), move)
		s.must(err)
	}
}

// fillDisk fills it to the last byte, and what room the journal's last page has.
func fillDisk(s *system) {
	f, err := os.Create(filepath.Join(s.disk, "ballast"))
	s.must(err)
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if n, err := f.Write(make([]byte, size)); err != nil && n == 0 {
			size /= 2
		}
	}
	s.sql(s.database, `SELECT commitcast.append('noise', 'n', '1') FROM generate_series(1, 500)`)
}

// slowProgram opens ten connections to b2 that follow a topic and read nothing, again and again, and has much written there.
func slowProgram(s *system) {
	const feed, connections = "feed", 10
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var following atomic.Int64
	s.stopProgram = sync.OnceFunc(func() { cancel(); all.Wait() })
	s.t.Cleanup(s.stopProgram)
	token := s.issuer.Token("slow-program", []string{feed}, nil)
	dialer := &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // else the kernel takes megabytes
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	h := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	s.t.Cleanup(h.CloseIdleConnections)
	for range connections {
		all.Go(func() { // ends with stopProgram
			for ctx.Err() == nil {
				ws, _, err := websocket.Dial(ctx, s.b2.URL+"/v1/ws", &websocket.DialOptions{HTTPClient: h, Subprotocols: []string{wire.Protocol}})
				if err != nil {
					time.Sleep(100 * time.Millisecond)
					continue
				}
				ws.Write(ctx, websocket.MessageText, []byte(`{"op":"auth","token":"`+token+`"}`))
				ws.Write(ctx, websocket.MessageText, []byte(`{"op":"subscribe","id":1,"topic":"`+feed+`"}`))
				for told := ""; err == nil && !strings.Contains(told, "subscribed"); {
					var message []byte
					_, message, err = ws.Read(ctx)
					told = string(message)
				}
				following.Add(1)
				select { // it does something else for longer than anybody waits
				case <-ctx.Done():
				case <-time.After(20 * time.Second):
				}
				ws.CloseNow()
			}
		})
	}
	testkit.Eventually(s.t, 10*time.Second, func() bool { return following.Load() == connections }, "the program follows")
	pages := func(n int) error {
		_, err := s.writer.pool.Exec(ctx, `SELECT commitcast.append($1, 'page', to_json(repeat('x', 200000))) FROM generate_series(1, $2::int)`, feed, n)
		return err
	}
	s.must(pages(20)) // more than the kernel takes
	all.Go(func() {   // and what comes later: ends with stopProgram
		for pages(1) == nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
}

// certify puts a certificate into the files that the broadcasters read.
func (s *system) certify(until time.Time) {
	s.t.Helper()
	cert, key := s.authority.IssueUntil(until, "127.0.0.1")
	s.must(os.WriteFile(s.cert, cert, 0o600))
	s.must(os.WriteFile(s.key, key, 0o600))
}
