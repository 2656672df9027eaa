package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// DigestQuery reads what sums up the rows behind a state, without reading the state.
type DigestQuery struct {
	// SQL returns one row: how many rows there are (bigint), when the last of them was modified (timestamptz, or NULL),
	// and, if you like, a hash of them (text) as the third column. For example
	//
	//	SELECT count(*), max(updated_at), commitcast.hash_rows(id || ' ' || version) FROM holding WHERE market = $1
	//
	// with an index that begins with market. Rows and last modified find an insert, a delete and an update that sets
	// updated_at, by whomever. The hash finds every change of what it is fed with, also those that cancel out each
	// other; it does not depend on the order of rows.
	SQL  string
	Args []any
}

// Digest is the cheap form of a snapshot. Two equal digests mean: the same events, the same number of rows, none of them
// modified since, and, with a hash, the same rows.
type Digest struct {
	Position
	Rows     int64
	Modified time.Time // zero if there are no rows
	Hash     string    // "" without one
}

// ReadDigest reads a topic's digest in one statement. On a replica it is that of the moment up to which it has replayed.
//
// Errors: as of [Snapshot].
func ReadDigest(ctx context.Context, db Database, topic string, q DigestQuery) (d Digest, err error) {
	if !validTopic(topic) {
		return d, badTopic(topic)
	}
	err = waitEpoch(ctx, func() error {
		d, err = readDigest(ctx, db, topic, q)
		return err
	})
	return d, err
}

// readDigest is one attempt.
func readDigest(ctx context.Context, db querier, topic string, q DigestQuery) (Digest, error) {
	args := append(q.Args[:len(q.Args):len(q.Args)], []string{topic}, MaxPending, maxPendingScan)
	rows, err := db.Query(ctx, digestSQL(q), args...)
	if err != nil {
		return Digest{}, fmt.Errorf("outbox: digest: %w", err)
	}
	defer rows.Close()
	var d Digest
	var modified *time.Time
	var hash *string
	more := []any{&d.Rows, &modified, &hash}
	n := 0
	for ; rows.Next(); n++ {
		if got := len(rows.FieldDescriptions()) - positionColumns; got != 2 && got != 3 {
			return Digest{}, fmt.Errorf("outbox: digest: the query returns %d columns, not rows, last modified and perhaps a hash", got)
		} else {
			more = more[:got]
		}
		if d.Position, err = scanPosition(rows, topic, more...); err != nil {
			return Digest{}, err
		}
	}
	if err := rows.Err(); err != nil {
		return Digest{}, fmt.Errorf("outbox: digest: %w", err)
	}
	if n != 1 {
		return Digest{}, fmt.Errorf("outbox: digest: the query returns %d rows, not one", n)
	}
	if modified != nil {
		d.Modified = *modified
	}
	if hash != nil {
		d.Hash = *hash
	}
	return d, nil
}

// positionColumns is how many columns snapshotSQL has.
const positionColumns = 6

var placeholder = regexp.MustCompile(`\$[123]\b`)

// digestSQL joins the topic's position and the query's row in one statement, so that both are of one instant. The
// placeholders of snapshotSQL come after those of the query.
func digestSQL(q DigestQuery) string {
	position := placeholder.ReplaceAllStringFunc(snapshotSQL, func(p string) string {
		return "$" + strconv.Itoa(len(q.Args)+int(p[1]-'0'))
	})
	return "SELECT p.*, d.* FROM (\n" + position + "\n) p CROSS JOIN (\n" + q.SQL + "\n) d"
}

// tag sums a digest up for an ETag: events and rows only, so that it is the same in the epoch after a restart.
func (d Digest) tag(shape string) string {
	return etag(shape, d.Cursor, strconv.FormatInt(d.Rows, 10), strconv.FormatInt(d.Modified.UnixMicro(), 10), d.Hash)
}

// snapshotTag is tag for a snapshot, which also says the epoch and what is pending.
func (d Digest) snapshotTag(shape string) string {
	return etag(d.tag(shape), d.Epoch, fmt.Sprint(d.Pending))
}

// etag is a weak entity tag: it stands for what an answer says, not for its bytes.
func etag(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return `W/"` + hex.EncodeToString(sum[:12]) + `"`
}
