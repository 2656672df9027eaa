package worker

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/internal/journal"
)

var (
	//go:embed begin.sql
	beginSQL string
	//go:embed sequence.sql
	sequenceSQL string
	//go:embed read.sql
	readTemplate string
	readSQL      = strings.ReplaceAll(readTemplate, "{columns}", journal.Columns)
)

const (
	// lockClass is the first key of the owners' advisory locks, plus the partition: "CC" in ASCII, times 2^16. The
	// second key is the term.
	lockClass = 0x4343_0000
	// ownerIdle ends the session of an owner that does nothing: one that was stopped, or whose host is gone. A drain
	// asks Postgres something every pingEvery.
	ownerIdle = 3 * time.Second
	// statementTimeout bounds a batch: longer means that the disk or a lock is in trouble, and trying again shows it.
	statementTimeout = 10 * time.Second
	// roundTimeout bounds one round trip as seen from here, for when the network is gone.
	roundTimeout = 15 * time.Second
	// connectTimeout bounds connecting, and closing politely.
	connectTimeout = 5 * time.Second
	// ownerReuse is how long a connection without an owner is kept for the next drain; well below ownerIdle.
	ownerReuse = 1500 * time.Millisecond
)

// setSession makes a session independent of what the server, the database or the role set as defaults.
func setSession(cfg *pgx.ConnConfig, name string, more map[string]string) {
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = make(map[string]string)
	}
	cfg.RuntimeParams["application_name"] = name
	cfg.RuntimeParams["default_transaction_isolation"] = "read committed"
	cfg.RuntimeParams["default_transaction_read_only"] = "off"
	cfg.RuntimeParams["default_transaction_deferrable"] = "off"
	cfg.RuntimeParams["idle_session_timeout"] = "0"
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["lock_timeout"] = "0"
	for k, v := range more {
		cfg.RuntimeParams[k] = v
	}
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > connectTimeout {
		cfg.ConnectTimeout = connectTimeout
	}
}

// ownerParams are the session settings of an owner.
var ownerParams = map[string]string{
	"synchronous_commit": "on", // an offset that anyone saw must survive a crash
	// A partition's outbox is empty nearly always, and so its statistics lie.
	"enable_seqscan": "off",
	// Both bound how long a lost owner keeps its lock.
	"idle_session_timeout":                millis(ownerIdle),
	"idle_in_transaction_session_timeout": millis(ownerIdle),
	"statement_timeout":                   millis(statementTimeout),
	"tcp_user_timeout":                    millis(ownerIdle),
	"tcp_keepalives_idle":                 "1",
	"tcp_keepalives_interval":             "1",
	"tcp_keepalives_count":                "3",
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// connConfig is how to reach the database for a connection outside any pool.
func (w *Worker) connConfig(ctx context.Context, name string) (*pgx.ConnConfig, error) {
	cfg := w.poolCfg.ConnConfig.Copy()
	setSession(cfg, name, nil)
	if w.poolCfg.BeforeConnect != nil {
		if err := w.poolCfg.BeforeConnect(ctx, cfg); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// owner is a connection that owns a partition while its session holds the advisory lock.
type owner struct {
	conn           *pgconn.PgConn
	begin          *pgconn.StatementDescription
	sequence, read *pgconn.StatementDescription
	idleSince      time.Time
	buf            [5][8]byte // parameters of the statement being sent
}

func (w *Worker) connectOwner(ctx context.Context) (*owner, error) {
	cfg, err := w.connConfig(ctx, "commitcast drain")
	if err != nil {
		return nil, err
	}
	setSession(cfg, "commitcast drain", ownerParams)
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, err
	}
	o := &owner{conn: conn}
	p := conn.StartPipeline(ctx)
	p.SendPrepare("begin", beginSQL, nil)
	p.SendPrepare("sequence", sequenceSQL, nil)
	p.SendPrepare("read", readSQL, nil)
	err = p.Sync()
	for _, sd := range []**pgconn.StatementDescription{&o.begin, &o.sequence, &o.read} {
		if err != nil {
			break
		}
		var result any
		if result, err = p.GetResults(); err == nil {
			*sd = result.(*pgconn.StatementDescription)
		}
	}
	err = errors.Join(err, p.Close())
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("preparing statements: %w", err)
	}
	o.begin.Name, o.sequence.Name, o.read.Name = "begin", "sequence", "read"
	return o, nil
}

// unlock gives up every lock of the session, so that another drain can use it.
func (o *owner) unlock() error {
	if o.conn.IsClosed() || o.conn.IsBusy() {
		return errors.New("connection is not usable")
	}
	if err := o.deadline(connectTimeout); err != nil {
		return err
	}
	_, err := o.conn.Exec(context.Background(), "SELECT pg_advisory_unlock_all()").ReadAll()
	return err
}

func (o *owner) close() { closeConn(o.conn) }

func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nobody is helped by knowing that a connection was closed already
}

// deadline bounds the round trip that is about to begin.
func (o *owner) deadline(d time.Duration) error { return o.conn.Conn().SetDeadline(time.Now().Add(d)) }

var binaryFormat = []int16{1}

// lockKeys are the keys of a term's advisory lock, in binary.
func lockKeys(partition int16, term int64) (class, key []byte) {
	return binary.BigEndian.AppendUint32(nil, uint32(lockClass+int32(partition))),
		binary.BigEndian.AppendUint32(nil, uint32(term&0x7fff_ffff)) // a term a minute: 2^31 of them are enough
}

// sendBegin queues begin.sql.
func (o *owner) sendBegin(p *pgconn.Pipeline, partition int16, term int64) {
	class, key := lockKeys(partition, term)
	p.SendQueryStatement(o.begin, [][]byte{
		class, key,
		binary.BigEndian.AppendUint16(nil, uint16(partition)),
		binary.BigEndian.AppendUint64(nil, uint64(term)),
	}, binaryFormat, binaryFormat)
	p.SendPipelineSync()
}

// report is what sequence() is told, and when nothing, "": both numbers count in their epoch only.
type report struct {
	epoch      string
	done, safe int64 // published up to this seq; no outbox row up to this id is still to come
}

// sendSequence queues sequence.sql.
func (o *owner) sendSequence(p *pgconn.Pipeline, partition int16, term int64, batch int, told report) {
	b := &o.buf
	p.SendQueryStatement(o.sequence, [][]byte{
		binary.BigEndian.AppendUint16(b[0][:0], uint16(partition)),
		binary.BigEndian.AppendUint64(b[1][:0], uint64(term)),
		binary.BigEndian.AppendUint32(b[2][:0], uint32(batch)),
		[]byte(told.epoch),
		binary.BigEndian.AppendUint64(b[3][:0], uint64(told.done)),
		binary.BigEndian.AppendUint64(b[4][:0], uint64(told.safe)),
	}, binaryFormat, binaryFormat)
	p.SendPipelineSync()
}

// sendRead queues read.sql.
func (o *owner) sendRead(p *pgconn.Pipeline, partition int16, after int64, since journal.PgMicros, rows, bytes int) {
	b := &o.buf
	p.SendQueryStatement(o.read, [][]byte{
		binary.BigEndian.AppendUint16(b[0][:0], uint16(partition)),
		binary.BigEndian.AppendUint64(b[1][:0], uint64(after)),
		binary.BigEndian.AppendUint64(b[2][:0], uint64(since)),
		binary.BigEndian.AppendUint64(b[3][:0], uint64(rows)),
		binary.BigEndian.AppendUint64(b[4][:0], uint64(bytes)),
	}, binaryFormat, binaryFormat)
	p.SendPipelineSync()
}

// standing is where a partition stands, as sequence() answers.
type standing struct {
	epoch                string
	seq, published, term int64
	sequenced            int
}

func (s *standing) scan(v [][]byte) error {
	if len(v) != 5 || len(v[1]) != 8 || len(v[2]) != 8 || len(v[3]) != 8 || len(v[4]) != 4 {
		return errors.New("sequence() answered with a row of another shape: does the schema fit this binary?")
	}
	if s.epoch != string(v[0]) {
		s.epoch = string(v[0])
	}
	s.seq = int64(binary.BigEndian.Uint64(v[1]))
	s.published = int64(binary.BigEndian.Uint64(v[2]))
	s.term = int64(binary.BigEndian.Uint64(v[3]))
	s.sequenced = int(int32(binary.BigEndian.Uint32(v[4])))
	return nil
}

// nextResult reads one statement of a pipeline with its sync, and hands each row to row.
func nextResult(p *pgconn.Pipeline, row func(values [][]byte) error) error {
	result, err := p.GetResults()
	if rr, ok := result.(*pgconn.ResultReader); ok && err == nil {
		var rowErr error
		for rr.NextRow() {
			if rowErr == nil { // after an error the rest is read all the same, to stay in step
				rowErr = row(rr.Values())
			}
		}
		_, err = rr.Close()
		err = errors.Join(err, rowErr)
	}
	if err != nil {
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || isFatal(pgErr) {
			return err
		}
	}
	if _, serr := p.GetResults(); serr != nil { // the sync
		return errors.Join(err, serr)
	}
	return err
}

// isFatal: the server ended the session.
func isFatal(err *pgconn.PgError) bool {
	return err.SeverityUnlocalized == "FATAL" || err.SeverityUnlocalized == "PANIC" || strings.HasPrefix(err.Code, "57P")
}

// ownerPool keeps owner connections for a moment after a drain, since the next drain often follows soon.
type ownerPool struct {
	connect func(context.Context) (*owner, error)
	mu      sync.Mutex
	idle    []*owner
	closed  bool
}

// get hands out a connection that holds no lock.
func (p *ownerPool) get(ctx context.Context) (o *owner, reused bool, err error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 && time.Since(p.idle[n-1].idleSince) < ownerReuse {
		o = p.idle[n-1]
		p.idle = p.idle[:n-1]
	}
	p.mu.Unlock()
	if o != nil {
		return o, true, nil
	}
	o, err = p.connect(ctx)
	return o, false, err
}

// put takes back a connection that holds no lock.
func (p *ownerPool) put(o *owner) {
	o.idleSince = time.Now()
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.idle = append(p.idle, o)
	}
	p.mu.Unlock()
	if closed {
		o.close()
	}
}

// expire closes connections that have waited for too long.
func (p *ownerPool) expire() {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && time.Since(p.idle[n].idleSince) >= ownerReuse {
		n++
	}
	old := p.idle[:n:n]
	p.idle = append([]*owner(nil), p.idle[n:]...)
	p.mu.Unlock()
	for _, o := range old {
		o.close()
	}
}

func (p *ownerPool) closeAll() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, o := range idle {
		o.close()
	}
}
