package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// Columns is the SELECT list that [Scanner.Scan] reads, in order.
const Columns = `topic, "offset", epoch, seq, id, type, key, data, headers, created_at, sequenced_at`

const columnCount = 11

// maxInterned bounds the scanner's table of strings. Topics, types and epochs repeat; a reader of more different
// ones than this starts a new table and pays for one copy of each again.
const maxInterned = 4096

// Row is one row of the journal.
type Row struct {
	wire.Event           // Data and Headers point into the buffer that was scanned
	Seq         int64    // place in the partition
	SequencedAt PgMicros // never falls from one seq to the next
}

// PgMicros is a timestamptz as Postgres sends it: microseconds since the year 2000. It goes back to Postgres as a
// parameter without loss, infinities included.
type PgMicros int64

// MinusInfinity is '-infinity'.
const MinusInfinity PgMicros = -1 << 63

// Time is m as a time.
func (m PgMicros) Time() time.Time { return time.UnixMicro(int64(m) + pgEpochMicros) }

// pgEpochMicros is 2000-01-01 in Unix microseconds.
const pgEpochMicros = 946_684_800_000_000

// Scanner turns rows as they come from the server into events, with few allocations. The zero Scanner is ready. Not
// safe for concurrent use.
type Scanner struct {
	strings map[string]string
}

// Scan reads the values of one row, all in the binary format: of a pgconn.ResultReader that was asked for it, or
// RawValues of pgx.Rows queried with pgx.QueryResultFormats{pgx.BinaryFormatCode}. The row is valid until the
// reader moves on.
func (s *Scanner) Scan(row *Row, values [][]byte) error {
	if len(values) != columnCount {
		return fmt.Errorf("journal: a row of %d columns, not %d", len(values), columnCount)
	}
	for _, i := range [...]int{1, 3, 4, 9, 10} {
		if len(values[i]) != 8 {
			return fmt.Errorf("journal: column %d is not a binary 8-byte value", i+1)
		}
	}
	row.Topic = s.intern(values[0])
	row.Offset = int64(binary.BigEndian.Uint64(values[1]))
	row.Epoch = s.intern(values[2])
	row.Seq = int64(binary.BigEndian.Uint64(values[3]))
	row.ID = int64(binary.BigEndian.Uint64(values[4]))
	row.Type = s.intern(values[5])
	row.Key = string(values[6])
	row.Data = values[7]
	row.Headers = values[8]
	row.At = PgMicros(binary.BigEndian.Uint64(values[9])).Time()
	row.SequencedAt = PgMicros(binary.BigEndian.Uint64(values[10]))
	return nil
}

func (s *Scanner) intern(b []byte) string {
	if str, ok := s.strings[string(b)]; ok {
		return str
	}
	if s.strings == nil || len(s.strings) >= maxInterned {
		s.strings = make(map[string]string)
	}
	str := string(b)
	s.strings[str] = str
	return str
}

// AppendFrame appends the frame of an event. One that cannot stand in a frame becomes a skip frame, which says that
// there is something at this offset and leaves the topic contiguous; skipped reports it. Events of the system's own types
// become frames that broadcasters keep to themselves.
func AppendFrame(dst []byte, e *wire.Event) (frame []byte, skipped bool) {
	if strings.HasPrefix(e.Type, wire.ReservedTypes) {
		return appendOwn(dst, e)
	}
	dst, err := wire.AppendEvent(dst, e)
	if errors.Is(err, wire.ErrUnencodable) {
		return wire.AppendSkip(dst, e.Topic, e.Epoch, e.Offset, e.ID), true
	}
	return dst, false
}

// appendOwn appends the frame of an event of the system's own: a fence, or, of a type that a later version knows, one that
// only fills the offset.
func appendOwn(dst []byte, e *wire.Event) (frame []byte, skipped bool) {
	var about struct{ Subject string }
	if (e.Type == wire.TypeRevoke || e.Type == wire.TypeRestore) && json.Unmarshal(e.Data, &about) == nil && about.Subject != "" {
		return wire.AppendFence(dst, &wire.Fence{Topic: e.Topic, Epoch: e.Epoch, Offset: e.Offset, ID: e.ID,
			Subject: about.Subject, Revoked: e.Type == wire.TypeRevoke}), false
	}
	return wire.AppendSkip(dst, e.Topic, e.Epoch, e.Offset, e.ID), true
}

// Encode is [AppendFrame] into a buffer of its own.
func Encode(e *wire.Event) []byte {
	frame, _ := AppendFrame(make([]byte, 0, 256+len(e.Data)+len(e.Headers)), e)
	return frame
}
