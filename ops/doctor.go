package ops

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/migrations"
	"github.com/commitcast/commitcast/stream"
)

//go:embed settings.sql
var settingsSQL string

const (
	// workerConnections is what a worker takes, see docs/operations.md.
	workerConnections = 12
	// txLong and txTooLong are ages of a transaction: vacuum waits for it, and the outbox's dead rows with it.
	txLong, txTooLong = 5 * time.Minute, time.Hour
	// deadMany is how many dead rows of the outbox are more than its vacuum leaves.
	deadMany = 200_000
	// pubsubLeast is the least hard limit of a subscription's output buffer that bursts fit into, in bytes: Redis's default.
	pubsubLeast = 32 << 20
)

// Check is one thing that the doctor has looked at.
type Check struct {
	Area  string `json:"area"` // program, database, redis, nodes, event
	Name  string `json:"name"`
	Level Level  `json:"level"`
	Says  string `json:"says"`
	Fix   string `json:"fix,omitempty"` // what to change
}

// Diagnosis is what the doctor says.
type Diagnosis struct {
	Level  Level   `json:"level"`
	Checks []Check `json:"checks"`
}

// DoctorConfig says how far the doctor goes.
type DoctorConfig struct {
	// Event is whether an event is sent all the way, of the topic CanaryTopic: the one thing that changes something.
	Event bool
	// ClientToken is the token of a client that may read CanaryTopic. It goes to ClientURLs only.
	ClientToken string
	// ClientURLs are addresses of WebSockets to watch besides those that the broadcasters tell: that of a load balancer, say.
	ClientURLs []string
}

// Doctor looks at a deployment and says what to change. It fails only if ctx ends.
func (c *Console) Doctor(ctx context.Context, cfg DoctorConfig) (*Diagnosis, error) {
	d := &Diagnosis{Level: Good}
	add := func(area, name string, level Level, says, fix string) {
		d.Checks = append(d.Checks, Check{area, name, level, says, fix})
		d.Level = worse(d.Level, level)
	}
	database := c.examineDatabase(ctx, add)
	c.examineRedis(ctx, database, add)
	nodes := c.examineNodes(ctx, database, add)
	if cfg.Event {
		c.examineEvent(ctx, nodes, cfg, add)
	}
	return d, ctx.Err()
}

type addCheck func(area, name string, level Level, says, fix string)

// examined is what later checks compare with.
type examined struct {
	ok    bool
	clock time.Duration // of the database, ahead of here
}

func (c *Console) examineDatabase(ctx context.Context, add addCheck) (e examined) {
	const area = "database"
	qctx, cancel := context.WithTimeout(ctx, 2*lookTimeout)
	defer cancel()
	if err := c.pool.Ping(qctx); err != nil {
		if pooled := migrations.PooledError(err); pooled != nil {
			add(area, "direct", Problem, oneLine(pooled), poolerFix)
			return e
		}
		add(area, "reachable", Problem, oneLine(err), "see that Postgres runs and that --database-url leads to it")
		return e
	}
	if !c.examinePooler(qctx, add) {
		return e // what is asked next would fail for that reason
	}
	if err := migrations.Check(qctx, c.pool); err != nil {
		add(area, "schema", Problem, oneLine(err), "commitcast migrate up, with the commitcast that the processes run")
		return e
	}
	add(area, "schema", Good, fmt.Sprintf("version %d, which this commitcast works with", migrations.Latest()), "")

	var num, room, used, prepared, leaves int
	var version, encoding, role string
	var replica, autovacuum, fsync, fullPages, outboxOff, mayWrite, mayRead, mayWork, mayAct, today, tomorrow bool
	var oldest float64
	var dead, bytes int64
	var clock time.Time
	start := time.Now()
	err := c.pool.QueryRow(qctx, settingsSQL).Scan(&num, &version, &encoding, &replica, &role, &room, &used, &autovacuum, &fsync, &fullPages, &oldest, &prepared,
		&dead, &outboxOff, &mayWrite, &mayRead, &mayWork, &mayAct, &leaves, &today, &tomorrow, &bytes, &clock)
	if err != nil {
		add(area, "settings", Problem, oneLine(err), "use a role that may read the schema commitcast")
		return e
	}
	took := time.Since(start)
	e = examined{true, clock.Sub(start.Add(took / 2))}
	switch {
	case num < migrations.MinServerVersion || encoding != "UTF8":
		add(area, "version", Problem, "Postgres "+version+", encoding "+encoding, "14 or later is needed, with encoding UTF8")
	case replica:
		add(area, "version", Problem, "Postgres "+version+", and a replica", "give the address of the primary")
	default:
		add(area, "version", Good, "Postgres "+version, "")
	}

	may := []string{}
	for what, yes := range map[string]bool{"write events": mayWrite, "read": mayRead, "run a worker": mayWork, "act (ops)": mayAct} {
		if yes {
			may = append(may, what)
		}
	}
	slices.Sort(may)
	level, fix := Good, ""
	if !mayRead {
		level, fix = Problem, "this role may not even read; grant it commitcast_reader, or what it is for"
	} else if !mayAct {
		level, fix = Warning, "actions of commitcast ops need commitcast_operator"
	}
	add(area, "rights", level, fmt.Sprintf("%s may: %s", role, strings.Join(may, ", ")), fix)

	free := room - used
	switch {
	case free < workerConnections:
		add(area, "connections", Problem, fmt.Sprintf("%d of %d are taken: a worker needs %d and finds no room", used, room, workerConnections), "raise max_connections, or let applications pool")
	case free < 3*workerConnections:
		add(area, "connections", Warning, fmt.Sprintf("%d of %d are taken; a worker needs %d", used, room, workerConnections), "raise max_connections, or let applications pool")
	default:
		add(area, "connections", Good, fmt.Sprintf("%d of %d are taken; a worker needs %d", used, room, workerConnections), "")
	}
	if !autovacuum || outboxOff {
		add(area, "autovacuum", Problem, "it is off: the outbox is written and emptied all the time", "autovacuum = on, and none off for commitcast.outbox")
	} else if dead > deadMany {
		add(area, "autovacuum", Warning, fmt.Sprintf("%d dead rows in the outbox", dead), "something holds vacuum up: see the oldest transaction")
	} else {
		add(area, "autovacuum", Good, fmt.Sprintf("on; %d dead rows in the outbox", dead), "")
	}
	switch age := seconds(oldest); {
	case age > txTooLong:
		add(area, "oldest transaction", Problem, "open for "+age.Round(time.Second).String()+": no dead row younger than that is removed, in any table", "end it: SELECT pid, query FROM pg_stat_activity ORDER BY xact_start")
	case age > txLong:
		add(area, "oldest transaction", Warning, "open for "+age.Round(time.Second).String(), "see whether it should be: idle_in_transaction_session_timeout ends those that nobody ends")
	default:
		add(area, "oldest transaction", Good, "open for "+age.Round(time.Millisecond).String(), "")
	}
	if prepared > 0 {
		add(area, "prepared transactions", Warning, plural(prepared, "prepared transaction")+": each holds vacuum up until it is ended", "SELECT * FROM pg_prepared_xacts; ROLLBACK PREPARED those that nobody will")
	}
	if !fsync || !fullPages {
		add(area, "durability", Problem, "fsync or full_page_writes is off: a crash can lose or break what clients have seen", "turn both on, except for tests")
	}
	switch {
	case !today:
		add(area, "journal", Problem, "there is no leaf for today: sequencing waits until a worker makes one", "start a worker, or: SELECT commitcast.ensure_leaves(3)")
	case !tomorrow:
		add(area, "journal", Warning, "there is no leaf for tomorrow", "start a worker, or: SELECT commitcast.ensure_leaves(3)")
	default:
		add(area, "journal", Good, fmt.Sprintf("%d leaves, %s", leaves, Bytes(bytes)), "")
	}
	clockCheck(area, e.clock, took, add)
	return e
}

// examinePooler looks for something between here and Postgres that shares sessions: workers hold session locks and LISTEN.
// A pooler answers with a process id of its own when a session begins. False: there is one that nothing works behind.
func (c *Console) examinePooler(ctx context.Context, add addCheck) bool {
	const area, name = "database", "direct"
	var same, direct bool
	err := c.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if err := migrations.CheckDirect(ctx, conn.Conn()); err != nil {
			return err
		}
		told := conn.Conn().PgConn().PID()
		var first, second uint32
		if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&first); err != nil {
			return err
		}
		// A second session at once: behind a pooler that shares, the first may come out elsewhere now.
		other, err := c.pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer other.Release()
		if _, err := other.Exec(ctx, `BEGIN`); err != nil {
			return err
		}
		defer other.Exec(context.WithoutCancel(ctx), `ROLLBACK`)
		if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&second); err != nil {
			return err
		}
		same, direct = first == second, told == first
		return nil
	})
	switch {
	case errors.Is(err, migrations.ErrPooled):
		add(area, name, Problem, oneLine(err), poolerFix)
		return false
	case err != nil:
		add(area, name, Warning, "cannot be told: "+oneLine(err), "")
	case !same:
		add(area, name, Problem, "a proxy shares sessions among transactions: two statements of one session ran in two", "give workers and broadcasters the address of Postgres itself")
	case !direct:
		add(area, name, Warning, "something between here and Postgres answers in its place, as a pooler does", "give workers the address of Postgres itself, or a pool in session mode")
	default:
		add(area, name, Good, "this session is one with Postgres itself", "")
	}
	return true
}

const poolerFix = "give workers, broadcasters and this command the address of Postgres itself; applications may go through a pooler"

func (c *Console) examineRedis(ctx context.Context, e examined, add addCheck) {
	const area = "redis"
	if c.redis == nil {
		add(area, "configured", Good, "none was named: right for one process of `commitcast all` without Redis", "else give --redis-url")
		return
	}
	rctx, cancel := context.WithTimeout(ctx, 2*lookTimeout)
	defer cancel()
	start := time.Now()
	s, err := c.redis.Server(rctx)
	if err != nil {
		fix := "see that Redis runs and that --redis-url leads to it"
		if strings.Contains(err.Error(), "NOAUTH") || strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "NOPERM") {
			fix = "see the user and the password in --redis-url, and its rights: docs/operations.md"
		}
		add(area, "reachable", Problem, oneLine(err), fix)
		return
	}
	took := time.Since(start)
	major, _, _ := strings.Cut(s.Version, ".")
	if n, _ := strconv.Atoi(major); n < 7 {
		add(area, "version", Problem, s.Version, "7.0 or later is needed")
	} else {
		add(area, "version", Good, "Redis "+s.Version, "")
	}
	if s.Role != "master" {
		add(area, "mode", Problem, "this is a replica: nothing can be published here", "give the address of the master")
	}
	switch {
	case s.MaxMemory == 0:
		add(area, "memory", Warning, Bytes(s.UsedMemory)+" used, without a limit: it may take the whole machine", "set maxmemory, and maxmemory-policy allkeys-lru: it is a cache")
	case s.MaxMemoryPolicy == "noeviction":
		add(area, "memory", Warning, fmt.Sprintf("%s of %s used, noeviction: when it is full, nothing is pushed", Bytes(s.UsedMemory), Bytes(s.MaxMemory)), "maxmemory-policy allkeys-lru: it is a cache")
	default:
		add(area, "memory", Good, fmt.Sprintf("%s of %s used, %s", Bytes(s.UsedMemory), Bytes(s.MaxMemory), s.MaxMemoryPolicy), "")
	}
	if hard, ok := hardLimit(s.PubSubBuffer); !ok {
		add(area, "subscriptions", Warning, "client-output-buffer-limit cannot be read by this user", "see that its limit for pubsub is 32mb 8mb 60 at least")
	} else if hard > 0 && hard < pubsubLeast {
		add(area, "subscriptions", Warning, "a subscription is cut off when "+Bytes(hard)+" wait for it", "client-output-buffer-limit pubsub 32mb 8mb 60 at least")
	} else {
		add(area, "subscriptions", Good, "client-output-buffer-limit pubsub "+s.PubSubBuffer, "")
	}
	if s.MaxClients > 0 && s.ConnectedClients > s.MaxClients*9/10 {
		add(area, "connections", Warning, fmt.Sprintf("%d of %d are taken", s.ConnectedClients, s.MaxClients), "raise maxclients")
	}
	switch err := c.redis.Rights(rctx); {
	case err == nil:
		add(area, "rights", Good, "this user may publish, read and subscribe", "")
	case errors.Is(err, stream.ErrUnavailable):
		add(area, "rights", Problem, oneLine(err), "nothing can be published now")
	default:
		add(area, "rights", Problem, oneLine(err), "the user needs ~cc:* &cc:* and the commands of scripts, streams and sharded Pub/Sub")
	}
	if !s.Clock.IsZero() {
		clockCheck(area, s.Clock.Sub(start.Add(took/2)), took, add)
	}
}

// hardLimit is the first of "33554432 8388608 60".
func hardLimit(s string) (int64, bool) {
	first, _, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil
}

// clockCheck compares a clock with this one. took is within what it cannot be told.
func clockCheck(area string, ahead, took time.Duration, add addCheck) {
	if off := time.Duration(math.Abs(float64(ahead))); off > clockOff+took {
		add(area, "clock", Warning, fmt.Sprintf("%v from the clock of this machine", ahead.Round(time.Millisecond)), "let all machines keep time (NTP): latencies in metrics compare clocks")
		return
	}
	add(area, "clock", Good, fmt.Sprintf("%v from the clock of this machine, give or take %v", ahead.Round(time.Millisecond), (took/2).Round(time.Millisecond)), "")
}

func (c *Console) examineNodes(ctx context.Context, e examined, add addCheck) []*Node {
	const area = "nodes"
	nodes, _ := c.Nodes(ctx)
	var workers, broadcasters int
	versions := map[string]bool{}
	for _, n := range nodes {
		switch {
		case n.Identity == nil && n.Connected:
			add(area, n.Address, Warning, "connected to the database, and cannot be asked: "+n.Error, "--ops-listen where it can be reached from here, with --ops-token-file; --ops-advertise, if that is another address")
			continue
		case n.Identity == nil:
			add(area, n.Address, Problem, n.Error, "see whether it runs")
			continue
		}
		id := n.Identity
		versions[id.Version] = true
		says, level := []string{n.Kind(), id.Version}, Good
		if id.Worker != nil {
			workers++
			if id.Worker.Ready != "" {
				level = Problem
				says = append(says, id.Worker.Ready)
			}
		}
		if b := id.Broadcaster; b != nil {
			broadcasters++
			says = append(says, plural(b.Connections, "client"))
			if b.Ready != "" {
				level = worse(level, Problem)
				if b.Polling || b.Drained {
					level = Warning
				}
				says = append(says, b.Ready)
			}
		}
		if !n.Connected && e.ok {
			level = worse(level, Warning)
			says = append(says, "and not connected to this database")
		}
		add(area, n.Name(), level, strings.Join(says, ", "), "")
	}
	if workers == 0 {
		add(area, "workers", Problem, "none was found", "start one: commitcast worker")
	}
	if broadcasters == 0 {
		add(area, "broadcasters", Problem, "none was found", "start one: commitcast broadcaster")
	}
	if len(versions) > 1 {
		add(area, "versions", Warning, "nodes run different versions", "fine while a release rolls out; else bring them to one")
	}
	return nodes
}

// Bytes is a size for people.
func Bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// clientURL is where a broadcaster's WebSocket can be reached, as far as can be told from its address of the ops listener: one that
// listens on every address is reached there.
func clientURL(n *Node) string {
	scheme, rest, _ := strings.Cut(n.Identity.ClientURL, "://")
	hostport, path, _ := strings.Cut(rest, "/")
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return n.Identity.ClientURL
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if host, _, err = net.SplitHostPort(bare(n.Address)); err != nil {
			return n.Identity.ClientURL
		}
	}
	return scheme + "://" + net.JoinHostPort(host, port) + "/" + path
}

// CanaryTopic is Commitcast's own topic: what passes through it says that the whole way works.
const CanaryTopic = "commitcast/canary"

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
