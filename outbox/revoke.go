package outbox

import (
	"context"
	_ "embed"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed append_fences.sql
var appendFencesSQL string

// Types that begin with reserved are the system's own.
const (
	reserved    = "commitcast."
	typeRevoke  = reserved + "revoke"
	typeRestore = reserved + "restore"
)

// Revoke takes from a subject, which is "sub" of its tokens, the right to read topics, in a transaction that the caller
// owns. It returns the ids of the events that say so, one a topic. The offset of each is its topic's fence: broadcasters
// show the subject nothing from there on, on any node, and end its subscriptions exactly there; once the transaction has
// committed, they also refuse what lies before the fence to whoever asks for it anew. Whatever a token says, that stays so
// until [Restore]. Call it as [Append], after the transaction's last write.
//
// Transactions that change the same subject's access to the same topic wait for each other; nobody else waits.
//
// What a service hands out by itself, such as snapshots, is not held to it: SQL commitcast.revoked(subject, topic) tells.
//
// Errors: as of Append.
func Revoke(ctx context.Context, tx pgx.Tx, subject string, topics ...string) ([]int64, error) {
	return changeAccess(ctx, tx, typeRevoke, subject, topics)
}

// Restore gives back what [Revoke] took: the subject may read the topics again, all of them, as far as its tokens say.
// Subscriptions that have ended stay so: the client subscribes anew.
func Restore(ctx context.Context, tx pgx.Tx, subject string, topics ...string) ([]int64, error) {
	return changeAccess(ctx, tx, typeRestore, subject, topics)
}

func changeAccess(ctx context.Context, tx pgx.Tx, typ, subject string, topics []string) ([]int64, error) {
	var b buffer
	if err := b.addFences(typ, subject, topics); err != nil {
		return nil, err
	}
	return b.append(ctx, tx)
}

// Revoke is the function [Revoke] for this transaction. Like an event of [Transaction.Publish] it takes its place when fn has
// returned, after every write of fn and among the events in the order of these calls: the subject is shown what was
// published before it, and nothing that is published after it.
func (t *Transaction) Revoke(subject string, topics ...string) error {
	return t.buffer.addFences(typeRevoke, subject, topics)
}

// Restore is the function [Restore] for this transaction, as [Transaction.Revoke] is Revoke.
func (t *Transaction) Restore(subject string, topics ...string) error {
	return t.buffer.addFences(typeRestore, subject, topics)
}

// addFences adds one for each topic, or none.
func (b *buffer) addFences(typ, subject string, topics []string) error {
	before := len(b.rows)
	for _, topic := range topics {
		r, err := encodeFence(typ, subject, topic)
		if err == nil {
			_, err = b.addRow(r)
		}
		if err != nil {
			b.truncate(before)
			return err
		}
	}
	return nil
}

// encodeFence checks a change of access against its limits, with the messages of commitcast.revoke.
func encodeFence(typ, subject, topic string) (row, error) {
	r := row{topic: topic, typ: typ}
	if !validTopic(topic) {
		return r, badTopic(topic)
	}
	if n := len(subject); n < 1 || n > MaxSubject {
		return r, invalidf("subject must have 1 to %d bytes, not %d", MaxSubject, n)
	}
	if !validText(subject) {
		return r, invalidf("subject must be UTF-8 without NUL")
	}
	var err error
	r.data, err = marshal(map[string]string{"subject": subject})
	return r, err
}

func (r *row) isFence() bool { return strings.HasPrefix(r.typ, reserved) }

var errReserved = invalidf(`types that begin with "%s" are the system's own`, reserved)
