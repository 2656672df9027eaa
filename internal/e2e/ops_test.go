package e2e

import (
	"bufio"
	"context"
	endian "encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/ops"
)

// operate runs `commitcast ops …` and returns what it printed and its exit code.
func operate(t *testing.T, database, redisURL string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return command(t, []string{"DATABASE_URL=" + database, "REDIS_URL=" + redisURL, "COMMITCAST_OPERATOR=alice"}, append([]string{"ops"}, args...)...)
}

// look is operate with --json, read.
func look[T any](t *testing.T, database, redisURL string, args ...string) (v T, code int) {
	t.Helper()
	stdout, stderr, code := operate(t, database, redisURL, append(args, "--json")...)
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatalf("ops %v: %v: %s%s", args, err, stdout, stderr)
	}
	return v, code
}

// 10,000 events of a topic that Redis refused until it was given up are redriven, and then published again as a range, while
// the topic and a neighbour go on being written to. A client of each sees every offset once, in order, and nothing else; Redis
// has all of it in order; and the record says who did it.
func TestRedriveOfManyEvents(t *testing.T) {
	server := testkit.Redis(t, "user worker on >pass ~* &* +@all")
	admin := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: server.Password()})
	t.Cleanup(func() { admin.Close() })
	database := testkit.Database(t)
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("worker", "pass")
	rights := func(rules ...any) {
		t.Helper()
		if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", "worker"}, rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	rights("resetkeys", "~cc:*:near", "~cc:*:canary")
	start(t, database, u.String(), "worker", "--republish-attempts=1")
	n := start(t, database, server.URL(), "broadcaster")
	const many = 10_000
	hot, near := testkit.Dial(t, n.URL), testkit.Dial(t, n.URL)
	hot.Subscribe(1, "hot", "")
	hot.Expect("subscribed")
	near.Subscribe(1, "near", "")
	near.Expect("subscribed")
	exec1(t, database, `SELECT commitcast.append('hot', 'test', json_build_object('n', i)) FROM generate_series(1, $1::int) i`, many)
	hot.ExpectEvents("hot", 1, many) // from the journal
	testkit.Eventually(t, 30*time.Second, func() bool {
		topic, _ := look[ops.Topic](t, database, server.URL(), "topic", "hot")
		return topic.Parked != nil && topic.Parked.DiedAt != nil && topic.DeadLetters == 1
	}, "the topic is given up")
	if list, code := look[[]ops.Finding](t, database, server.URL(), "stuck"); code != 4 || !strings.Contains(fmt.Sprint(list), "commitcast ops redrive hot") {
		t.Errorf("stuck: code %d, %+v", code, list)
	}
	if _, stderr, code := operate(t, database, server.URL(), "redrive", "hot"); code != 2 || !strings.Contains(stderr, "--yes") {
		t.Errorf("without a word: code %d, %s", code, stderr)
	}
	if _, stderr, code := operate(t, database, server.URL(), "redrive", "hot", "--dry-run"); code != 0 || !strings.Contains(stderr, "10,000 events of hot") {
		t.Errorf("dry run: code %d, %s", code, stderr)
	}
	if h := heldByRedis(t, admin, "hot"); len(h) > 0 {
		t.Fatalf("Redis has %d events before the redrive", len(h))
	}
	rights("~*")

	// Both topics are written to all the while.
	writing, stop := context.WithCancel(context.Background())
	written := make(chan int64, 1)
	go func() { // ends with stop
		var n int64
		defer func() { written <- n }() // also when a client has failed the test
		conn, err := pgx.Connect(writing, database)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(context.Background())
		for writing.Err() == nil {
			if _, err := conn.Exec(context.Background(), `SELECT commitcast.append('hot', 'live', '1'), commitcast.append('near', 'live', '1')`); err != nil {
				t.Error(err)
				break
			}
			// The next when this one has arrived: then the live flow is not held up.
			near.ExpectEvents("near", n+1, n+1)
			hot.ExpectEvents("hot", many+n+1, many+n+1)
			n++
		}
	}()
	for _, args := range [][]string{{"redrive", "hot", "--yes"}, {"redrive", "hot", "--from=1", fmt.Sprintf("--to=%d", many), "--yes"}} {
		stdout, stderr, code := operate(t, database, server.URL(), args...)
		if code != 0 || !strings.Contains(stdout, "published: done") {
			t.Errorf("%v: code %d\n%s%s", args, code, stdout, stderr)
		}
	}
	stop()
	live := <-written
	if live < 3 {
		t.Errorf("%d events were written and arrived during both redrives", live)
	}
	testkit.Eventually(t, 20*time.Second, func() error {
		h := heldByRedis(t, admin, "hot")
		for i, offset := range h {
			if want := many + live - int64(len(h)) + int64(i) + 1; offset != want {
				return fmt.Errorf("Redis has offset %d in place %d, want %d", offset, i, want)
			}
		}
		if len(h) < many {
			return fmt.Errorf("Redis has %d events", len(h))
		}
		return nil
	}, "Redis has everything in order")
	exec1(t, database, `SELECT commitcast.append('hot', 'last', '1')`)
	hot.ExpectEvents("hot", many+live+1, many+live+1) // and nothing before it
	records, _ := look[[]ops.Record](t, database, server.URL(), "audit")
	if len(records) != 2 || records[0].Who != "alice" || records[0].Action != "redrive" || records[0].Target != "hot" || records[0].Result != "done" ||
		records[1].Result != "done" || records[1].Ended == nil {
		t.Errorf("record: %+v", records)
	}
	if dead, _ := look[[]ops.DeadLetter](t, database, server.URL(), "dead", "list", "--topic=hot"); len(dead) != 1 || dead[0].RedrivenAt == nil {
		t.Errorf("dead letters: %+v", dead)
	}
	t.Logf("%d events of each topic were written and arrived meanwhile", live)
}

// heldByRedis are the offsets that Redis has of a topic.
func heldByRedis(t *testing.T, admin *redis.Client, topic string) (offsets []int64) {
	t.Helper()
	keys, err := admin.Keys(t.Context(), "cc:*:"+topic).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		entries, err := admin.XRange(t.Context(), key, "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			var n int64
			fmt.Sscanf(e.ID, "%d-0", &n)
			offsets = append(offsets, n)
		}
	}
	return offsets
}

// With Redis or Postgres down, frozen or gone, `ops status` answers, says which, and goes on saying what can be known.
func TestStatusWithOneOfThemDown(t *testing.T) {
	server := testkit.Redis(t)
	postgres := testkit.Postgres(t)
	database := postgres.URL("postgres")
	testkit.Migrate(t, database)
	w := start(t, database, server.URL(), "worker")
	b := start(t, database, server.URL(), "broadcaster", "--node=b1")
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1')`)
	status := func(args ...string) (ops.Status, int) {
		t.Helper()
		began := time.Now()
		st, code := look[ops.Status](t, database, server.URL(), append([]string{"status", "--over=100ms"}, args...)...)
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("status took %v", took)
		}
		return st, code
	}
	healthy := func() {
		t.Helper()
		testkit.Eventually(t, 60*time.Second, func() error {
			st, code := status()
			if code != 0 || !st.Database.Up || !st.Redis.Up || len(st.Nodes) != 2 {
				return fmt.Errorf("code %d: %+v", code, st.Findings)
			}
			return nil
		}, "all is well")
	}
	healthy()
	if out, _, code := operate(t, database, server.URL(), "status"); code != 0 || !strings.Contains(out, "GOOD") || !strings.Contains(out, "b1") || strings.Contains(out, "\x1b[") {
		t.Errorf("code %d\n%s", code, out)
	}

	for name, how := range map[string][2]func(){
		"killed": {server.Kill, func() { server.Start(t.Context()) }},
		"frozen": {func() { server.Pause() }, func() { server.Resume() }},
	} {
		how[0]()
		st, code := status()
		if code != 3 && code != 4 || st.Redis.Up || !st.Redis.Configured || st.Redis.Error == "" || !st.Database.Up || len(st.Nodes) != 2 || st.Partitions == nil {
			t.Errorf("Redis %s: code %d, %+v", name, code, st)
		}
		out, _, _ := operate(t, database, server.URL(), "status", "--over=0")
		if !strings.Contains(out, "journal → Redis") || !strings.Contains(out, "down") || !strings.Contains(out, "Redis does not answer") {
			t.Errorf("Redis %s:\n%s", name, out)
		}
		how[1]()
		healthy()
	}

	node := strings.TrimPrefix(b.Ops, "http://")
	postgres.Kill()
	st, code := status("--node=" + node)
	if code != 4 || st.Database.Up || st.Database.Error == "" || !st.Redis.Up || len(st.Nodes) != 1 || st.Nodes[0].Name() != "b1" {
		t.Errorf("Postgres killed: code %d, %+v", code, st)
	}
	if list, code := look[[]ops.Finding](t, database, server.URL(), "stuck", "--node="+node); code != 4 || len(list) == 0 || list[0].Hop != "database" {
		t.Errorf("Postgres killed: code %d, stuck %+v", code, list)
	}
	if _, stderr, code := operate(t, database, server.URL(), "pause", "3", "--yes"); code != 1 || !strings.Contains(stderr, "the database does not answer") {
		t.Errorf("Postgres killed: pause: code %d, %s", code, stderr)
	}
	if err := postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	healthy()
	w.Cmd.Process.Kill()
	<-w.Done
	testkit.Eventually(t, 20*time.Second, func() bool { // it is not listed as one that may be
		st, _ := status()
		return len(st.Nodes) == 1 && strings.Contains(fmt.Sprint(st.Findings), "no worker was found")
	}, "the worker is gone from the list")
}

// A broadcaster is drained, and takes clients again; a subject's connections are closed; the ops listener gives what it has to the
// token alone, and no page orders anything.
func TestNodesAndClients(t *testing.T) {
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef-ops"), 0o600); err != nil {
		t.Fatal(err)
	}
	issuer := testkit.NewIssuer(t)
	start(t, database, redisURL, "worker", "--ops-token-file="+token)
	n := start(t, database, redisURL, "broadcaster", "--node=b1", "--ops-token-file="+token, "--auth=jwt", "--jwt-alg=EdDSA",
		"--jwt-key-file="+issuer.File(t), "--jwt-audience="+testkit.Audience)
	ada, bob := followAs(t, n, issuer, "ada"), followAs(t, n, issuer, "bob")

	if _, stderr, code := operate(t, database, redisURL, "drain", "b1", "--yes"); code == 0 || !strings.Contains(stderr, "no broadcaster answers") && !strings.Contains(stderr, "ops-token-file") {
		t.Errorf("without the token: code %d, %s", code, stderr)
	}
	arg := "--ops-token-file=" + token
	pages, code := look[[]ops.NodeClients](t, database, redisURL, "clients", arg)
	if code != 0 || len(pages) != 1 || pages[0].Total != 2 || len(pages[0].Clients) != 2 {
		t.Fatalf("clients: code %d, %+v", code, pages)
	}
	if pages, _ := look[[]ops.NodeClients](t, database, redisURL, "clients", arg, "--subject=ada"); len(pages[0].Clients) != 1 || pages[0].Clients[0].Subject != "ada" || pages[0].Clients[0].Subscriptions != 1 {
		t.Errorf("clients of ada: %+v", pages)
	}
	if out, stderr, code := operate(t, database, redisURL, "disconnect", "ada", arg, "--yes"); code != 0 || !strings.Contains(out, "b1: 1 closed") {
		t.Errorf("disconnect: code %d, %s%s", code, out, stderr)
	}
	ada.Expect("reconnect")
	ada.ExpectClose(1012)
	exec1(t, database, `SELECT commitcast.append('t', 'test', '1', headers => '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}')`)
	bob.ExpectEvents("t", 1, 1)
	topic, _ := look[ops.Topic](t, database, redisURL, "topic", "t", arg)
	if topic.Subscribers != 1 || topic.Head != 1 {
		t.Errorf("topic: %+v", topic)
	}
	testkit.Eventually(t, 20*time.Second, func() error { // how far publishing is, is written down a little later
		trace, code := look[ops.Trace](t, database, redisURL, "trace", "t", "1", arg)
		if code != 0 || !trace.Published || trace.InRedis == nil || !*trace.InRedis || len(trace.Nodes) != 1 || !trace.Nodes[0].Heard || trace.Nodes[0].Sent != 1 || len(trace.Unknown) == 0 ||
			trace.TraceID != "4bf92f3577b34da6a3ce929d0e0e4736" || trace.SpanID != "00f067aa0ba902b7" || !trace.Sampled {
			return fmt.Errorf("code %d, %+v", code, trace)
		}
		return nil
	}, "the trace of an event")
	if out, stderr, code := operate(t, database, redisURL, "trace", "t", "1", arg); code != 0 || !strings.Contains(out, "\ntrace 4bf92f3577b34da6a3ce929d0e0e4736, of the writer's span 00f067aa0ba902b7\n") {
		t.Errorf("trace: code %d, %s%s", code, out, stderr)
	}
	out, stderr, code := operate(t, database, redisURL, "tail", "t", "--no-follow", "--json")
	if code != 0 || !strings.Contains(out, `"offset":1,`) || strings.Count(out, "\n") != 1 {
		t.Errorf("tail: code %d, %s%s", code, out, stderr)
	}

	if out, stderr, code := operate(t, database, redisURL, "drain", "b1", arg, "--yes"); code != 0 || !strings.Contains(out, "1 clients were sent away") {
		t.Errorf("drain: code %d, %s%s", code, out, stderr)
	}
	bob.Expect("reconnect")
	bob.ExpectClose(1012)
	if _, resp, err := testkit.Open(t, n.URL, nil); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a drained node took a client: %v", err)
	}
	if resp := opsRequest(t, n, "GET", "/readyz", "", nil); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a drained node is ready: %s", resp.Status)
	}
	if _, _, code := operate(t, database, redisURL, "drain", "b1", arg, "--yes"); code != 5 {
		t.Errorf("drained twice: code %d", code)
	}
	if _, stderr, code := operate(t, database, redisURL, "drain", "b1", "--undo", arg, "--yes"); code != 0 {
		t.Errorf("undo: code %d, %s", code, stderr)
	}
	followAs(t, n, issuer, "bob")

	for name, c := range map[string]struct {
		method, path string
		header       http.Header
		want         int
	}{
		"no token":       {"GET", ops.PathNode, nil, 401},
		"a wrong one":    {"GET", ops.PathClients, http.Header{"Authorization": {"Bearer nonsense"}}, 401},
		"order, none":    {"POST", ops.PathDrain, http.Header{"Content-Type": {"application/json"}}, 401},
		"a page's order": {"POST", ops.PathDrain, http.Header{"Authorization": {"Bearer 0123456789abcdef-ops"}, "Content-Type": {"application/json"}, "Origin": {"https://evil.example"}}, 403},
		"a form":         {"POST", ops.PathDrain, http.Header{"Authorization": {"Bearer 0123456789abcdef-ops"}, "Content-Type": {"text/plain"}}, 415},
		"who is first":   {"POST", ops.PathAdvance, http.Header{"Authorization": {"Bearer 0123456789abcdef-ops"}, "Content-Type": {"application/json"}}, 400},
		"a page's first": {"POST", ops.PathAdvance, http.Header{"Authorization": {"Bearer 0123456789abcdef-ops"}, "Content-Type": {"application/json"}, "Origin": {"https://evil.example"}}, 403},
		"followers":      {"GET", ops.PathFollowers, nil, 401},
		"a subject":      {"POST", ops.PathDisconnect, http.Header{"Authorization": {"Bearer 0123456789abcdef-ops"}, "Content-Type": {"application/json"}}, 400},
	} {
		if resp := opsRequest(t, n, c.method, c.path, "{}", c.header); resp.StatusCode != c.want {
			t.Errorf("%s: %s, want %d", name, resp.Status, c.want)
		}
	}
	records, _ := look[[]ops.Record](t, database, redisURL, "audit")
	var did []string
	for _, r := range records {
		did = append(did, r.Action+" "+r.Target+": "+r.Result)
	}
	if got := strings.Join(did, "\n"); got != "undrain b1: done: 0 clients sent away\ndrain b1: done: 1 clients sent away\ndisconnect ada: done: 1 connections closed on 1 nodes" {
		t.Errorf("record:\n%s", got)
	}
}

// followAs opens a client of a subject that follows the topic "t".
func followAs(t *testing.T, n *node, issuer *testkit.Issuer, subject string) *testkit.Client {
	t.Helper()
	c, _, err := testkit.Open(t, n.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Auth(issuer.Token(subject, []string{"t"}, nil))
	c.Subscribe(1, "t", "")
	c.Expect("subscribed")
	return c
}

func opsRequest(t *testing.T, n *node, method, path, body string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, n.Ops+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

// The doctor: a deployment that is well; Redis set up badly, without rights or full; a broadcaster that hears nothing; nobody there.
func TestDoctor(t *testing.T) {
	server := testkit.Redis(t, "maxmemory 100mb", "maxmemory-policy allkeys-lru", "user weak on >pass ~* &* +@all -spublish")
	database := testkit.Database(t)
	find := func(d ops.Diagnosis, area, name string) (c ops.Check) {
		for _, c = range d.Checks {
			if c.Area == area && c.Name == name {
				return c
			}
		}
		return ops.Check{}
	}
	alone, code := look[ops.Diagnosis](t, database, server.URL(), "doctor")
	if code != 4 || find(alone, "nodes", "workers").Level != ops.Problem || find(alone, "nodes", "broadcasters").Level != ops.Problem || find(alone, "database", "schema").Level != ops.Good {
		t.Errorf("alone: code %d, %+v", code, alone)
	}
	start(t, database, server.URL(), "worker")
	start(t, database, server.URL(), "broadcaster", "--node=b1")
	testkit.Eventually(t, 30*time.Second, func() error { // a busy machine may be slow, which is a warning
		d, code := look[ops.Diagnosis](t, database, server.URL(), "doctor")
		if code != 0 || find(d, "event", "b1").Level != ops.Good || find(d, "redis", "rights").Level != ops.Good {
			return fmt.Errorf("code %d, %+v", code, d)
		}
		return nil
	}, "a deployment that is well")

	admin := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: server.Password()})
	defer admin.Close()
	for k, v := range map[string]string{"maxmemory-policy": "noeviction", "client-output-buffer-limit": "pubsub 1mb 1mb 60"} {
		if err := admin.ConfigSet(t.Context(), k, v).Err(); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("weak", "pass")
	d, code := look[ops.Diagnosis](t, database, u.String(), "doctor", "--no-event")
	if code != 4 || find(d, "redis", "memory").Level != ops.Warning || find(d, "redis", "subscriptions").Level != ops.Warning || find(d, "redis", "rights").Level != ops.Problem {
		t.Errorf("a bad Redis: code %d, %+v", code, d)
	}
	if find(d, "event", "append") != (ops.Check{}) {
		t.Error("an event was sent against the word")
	}
	if out, _, code := operate(t, testkit.EmptyDatabase(t), server.URL(), "doctor"); code != 4 || !strings.Contains(out, "commitcast migrate up") {
		t.Errorf("not migrated: code %d\n%s", code, out)
	}
	// Something between that answers in the place of Postgres, as a pooler does.
	pooled := impostor(t, database)
	if d, _ := look[ops.Diagnosis](t, pooled, server.URL(), "doctor", "--no-event"); find(d, "database", "direct").Level == ops.Good || find(d, "database", "direct").Level == "" {
		t.Errorf("a pooler: %+v", find(d, "database", "direct"))
	}
}

// impostor is the URL of a database behind something that tells clients another process id than the server's, as poolers do.
func impostor(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	target := u.Host
	go func() { // ends when l is closed
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer client.Close()
				to, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer to.Close()
				go func() { // ends with the connection
					defer to.Close()
					io.Copy(to, client)
				}()
				answers := bufio.NewReader(to)
				for header := make([]byte, 5); ; {
					if _, err := io.ReadFull(answers, header); err != nil {
						return
					}
					body := make([]byte, endian.BigEndian.Uint32(header[1:])-4)
					if _, err := io.ReadFull(answers, body); err != nil {
						return
					}
					if header[0] == 'K' {
						body[0] ^= 0x40
					}
					if _, err := client.Write(append(header, body...)); err != nil {
						return
					}
				}
			}()
		}
	}()
	u.Host = l.Addr().String()
	return u.String()
}
