package broadcaster

import (
	"context"

	"github.com/commitcast/commitcast/wire"
)

// Journal is what a broadcaster asks of the database: where topics stand, whether a cursor is valid, and events that
// memory and stream no longer hold. The binary gives it package internal/journal; a broadcaster knows no SQL.
//
// Every answer names the epoch that was current in the same read. Errors mean that the database cannot be asked now.
type Journal interface {
	// Positions answers each question in one read of the primary.
	Positions(ctx context.Context, questions []wire.Question) (epoch string, positions []wire.Position, err error)
	// Seqs reads how far each partition is sequenced: cheap, and different whenever any head is.
	Seqs(ctx context.Context) (epoch string, seqs [wire.Partitions]int64, err error)
	// Range reads encoded events after an offset, at most limit and about 512 KiB (always at least one if there is
	// one). They begin at after+1 and are contiguous; none means that after+1 is past retention or not there yet.
	Range(ctx context.Context, topic string, after int64, limit int) (epoch string, frames [][]byte, err error)
	// Ranges reads the first of what Range would, of many topics in one read: frames[i] follow after[i].Cursor.Offset.
	Ranges(ctx context.Context, after []wire.Question) (epoch string, frames [][][]byte, err error)
}
