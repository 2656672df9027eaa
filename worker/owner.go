package worker

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/commitcast/commitcast/internal/journal"
)

var (
	//go:embed begin.sql
	beginSQL string
	//go:embed end.sql
	endSQL string
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
	// ownerIdle ends the session of an owner that does nothing: one that was stopped, or whose host is gone. Every drain
	// asks Postgres something every pingEvery.
	ownerIdle = 3 * time.Second
	// statementTimeout bounds a batch: longer means that the disk or a lock is in trouble, and trying again shows it.
	statementTimeout = 10 * time.Second
	// roundTimeout bounds one round trip as seen from here, for when the network is gone.
	roundTimeout = 15 * time.Second
	// connectTimeout bounds connecting, and closing politely.
	connectTimeout = 5 * time.Second
	// ownerKept is how long the connection is kept when no drain is left; well below ownerIdle.
	ownerKept = 1500 * time.Millisecond
)

// setSession makes a session independent of what the server, the database or the role set as defaults.
func setSession(cfg *pgx.ConnConfig, name string, more map[string]string) {
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = make(map[string]string)
	}
	// A process says where operators reach it behind an @, and its sessions go on saying it.
	if _, at, ok := strings.Cut(cfg.RuntimeParams["application_name"], "@"); ok && !strings.Contains(name, "@") {
		name += "@" + at
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
	"jit":            "off", // compiling a statement takes longer than any of these
	// Planning anew for each set of partitions takes longer, too; and no plan is better for knowing them.
	"plan_cache_mode": "force_generic_plan",
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

// owner is the session by which this process owns partitions: it holds the advisory locks of its drains, and sequences and
// reads for all of them. Not safe for concurrent use.
type owner struct {
	conn                       *pgconn.PgConn
	begin, end, sequence, read *pgconn.StatementDescription
	buf                        [6][]byte // parameters of the statement being sent
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
	statements := []struct {
		sd        **pgconn.StatementDescription
		name, sql string
	}{{&o.begin, "begin", beginSQL}, {&o.end, "end", endSQL}, {&o.sequence, "sequence", sequenceSQL}, {&o.read, "read", readSQL}}
	p := conn.StartPipeline(ctx)
	for _, s := range statements {
		p.SendPrepare(s.name, s.sql, nil)
	}
	err = p.Sync()
	for _, s := range statements {
		if err != nil {
			break
		}
		var result any
		if result, err = p.GetResults(); err == nil {
			*s.sd = result.(*pgconn.StatementDescription)
			(*s.sd).Name = s.name
		}
	}
	err = errors.Join(err, p.Close())
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("preparing statements: %w", err)
	}
	return o, nil
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

// sendEnd queues end.sql.
func (o *owner) sendEnd(p *pgconn.Pipeline, partition int16, term int64) {
	class, key := lockKeys(partition, term)
	p.SendQueryStatement(o.end, [][]byte{class, key}, binaryFormat, binaryFormat)
	p.SendPipelineSync()
}

// sendSequence queues sequence.sql for the turns of a round.
func (o *owner) sendSequence(p *pgconn.Pipeline, turns []*turn, batch int, epoch string, safe int64) {
	b := &o.buf
	b[0], b[1], b[2] = appendArray(b[0][:0], int2OID, len(turns)), appendArray(b[1][:0], int8OID, len(turns)), appendArray(b[2][:0], int8OID, len(turns))
	for _, t := range turns {
		b[0] = appendInt2(b[0], t.partition)
		b[1] = appendInt8(b[1], t.term)
		if t.tell && t.epoch == epoch {
			b[2] = appendInt8(b[2], t.done)
		} else {
			b[2] = appendNull(b[2])
		}
	}
	b[3] = binary.BigEndian.AppendUint32(b[3][:0], uint32(batch))
	b[4] = append(b[4][:0], epoch...)
	b[5] = binary.BigEndian.AppendUint64(b[5][:0], uint64(safe))
	p.SendQueryStatement(o.sequence, [][]byte{b[0], b[1], b[3], b[4], b[2], b[5]}, binaryFormat, binaryFormat)
	p.SendPipelineSync()
}

// sendRead queues read.sql for the turns that want to read.
func (o *owner) sendRead(p *pgconn.Pipeline, turns []*turn, bytes int) {
	b := &o.buf
	b[0], b[1] = appendArray(b[0][:0], int2OID, len(turns)), appendArray(b[1][:0], int8OID, len(turns))
	b[2], b[3] = appendArray(b[2][:0], timestamptzOID, len(turns)), appendArray(b[3][:0], int8OID, len(turns))
	for _, t := range turns {
		b[0] = appendInt2(b[0], t.partition)
		b[1] = appendInt8(b[1], t.cursor)
		b[2] = appendInt8(b[2], int64(t.since))
		b[3] = appendInt8(b[3], int64(t.limit))
	}
	b[4] = binary.BigEndian.AppendUint64(b[4][:0], uint64(bytes))
	p.SendQueryStatement(o.read, b[:5], binaryFormat, binaryFormat)
	p.SendPipelineSync()
}

// Types of array elements.
const (
	int2OID        = 21
	int8OID        = 20
	timestamptzOID = 1184
)

// appendArray begins a one-dimensional array of n elements in the binary format; it may have nulls.
func appendArray(b []byte, oid uint32, n int) []byte {
	for _, v := range [...]uint32{1, 1, oid, uint32(n), 1} { // dimensions, nulls, element type, length, lower bound
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func appendInt2(b []byte, v int16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(b, 2), uint16(v))
}

func appendInt8(b []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(v))
}

func appendNull(b []byte) []byte { return binary.BigEndian.AppendUint32(b, 0xffff_ffff) }

// standing is where a partition stands, as sequence() answers.
type standing struct {
	epoch                string
	seq, published, term int64
	sequenced            int
	more                 bool // the outbox may have more of this partition
	contested            bool // somebody else has the partition's row locked: nothing was done
}

var errShape = errors.New("sequence() answered with a row of another shape: does the schema fit this binary?")

// scan takes the columns after the partition.
func (s *standing) scan(v [][]byte) error {
	if len(v) != 6 || len(v[1]) != 8 || len(v[2]) != 8 || len(v[3]) != 8 || v[4] != nil && len(v[4]) != 4 || len(v[5]) != 1 {
		return errShape
	}
	if s.epoch != string(v[0]) {
		s.epoch = string(v[0])
	}
	s.seq = int64(binary.BigEndian.Uint64(v[1]))
	s.published = int64(binary.BigEndian.Uint64(v[2]))
	s.term = int64(binary.BigEndian.Uint64(v[3]))
	s.sequenced, s.contested = 0, v[4] == nil
	if !s.contested {
		s.sequenced = int(int32(binary.BigEndian.Uint32(v[4])))
	}
	s.more = v[5][0] == 1
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
