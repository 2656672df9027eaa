package worker

import (
	"fmt"
	"time"

	"github.com/commitcast/commitcast/internal/journal"
	"github.com/commitcast/commitcast/wire"
)

// collector turns the rows of one read into runs of frames. Frames are encoded once, here. Not safe for concurrent use.
type collector struct {
	scanner journal.Scanner
	scratch []byte
	frames  []frameAt
	runs    []runAt
	byTopic map[string]int // → index of the topic's newest run
	sampled []sampledAt
	row     journal.Row

	lastSeq int64
	lastAt  journal.PgMicros
	bytes   int // of data read
	oldest  time.Time
	skipped int
}

type frameAt struct{ run, start, end int }

// sampledAt is a sampled event, as the span of its being sequenced.
type sampledAt struct {
	run  int
	span wire.Span
}

type runAt struct {
	topic       string
	first, seq  int64
	next        int64 // offset that would continue it
	count, size int
}

func (c *collector) reset() {
	c.scratch, c.frames, c.runs = c.scratch[:0], c.frames[:0], c.runs[:0]
	clear(c.sampled)
	c.sampled = c.sampled[:0]
	if c.byTopic == nil {
		c.byTopic = make(map[string]int)
	}
	clear(c.byTopic)
	c.bytes, c.skipped, c.oldest = 0, 0, time.Time{}
}

// add takes one row, as it comes from the server.
func (c *collector) add(values [][]byte) error {
	row := &c.row
	if err := c.scanner.Scan(row, values); err != nil {
		return err
	}
	if len(c.frames) > 0 && row.Seq <= c.lastSeq {
		return fmt.Errorf("the journal was read out of order: seq %d after %d", row.Seq, c.lastSeq)
	}
	i, ok := c.byTopic[row.Topic]
	if !ok || c.runs[i].next != row.Offset {
		i = len(c.runs)
		c.runs = append(c.runs, runAt{topic: row.Topic, first: row.Offset, seq: row.Seq, next: row.Offset})
		c.byTopic[row.Topic] = i
	}
	start := len(c.scratch)
	var skipped bool
	c.scratch, skipped = journal.AppendFrame(c.scratch, &row.Event)
	if skipped {
		c.skipped++
	}
	c.frames = append(c.frames, frameAt{i, start, len(c.scratch)})
	if len(row.Headers) > 0 && !skipped {
		if s, ok := wire.EventSpan(c.scratch[start:]); ok {
			s.Hop, s.Start, s.End = wire.HopSequence, row.At, row.SequencedAt.Time()
			c.sampled = append(c.sampled, sampledAt{i, s})
		}
	}
	r := &c.runs[i]
	r.next++
	r.count++
	r.size += len(c.scratch) - start
	if c.oldest.IsZero() || row.At.Before(c.oldest) {
		c.oldest = row.At
	}
	c.bytes += len(row.Data)
	c.lastSeq, c.lastAt = row.Seq, row.SequencedAt
	return nil
}

// finish copies the frames of each run into memory of its own: a stream in this process keeps frames, and a quiet
// topic's must not keep a whole batch alive.
func (c *collector) finish() []run {
	runs := make([]run, len(c.runs))
	bufs := make([][]byte, len(c.runs))
	for i, r := range c.runs {
		runs[i] = run{topic: r.topic, first: r.first, seq: r.seq, frames: make([][]byte, 0, r.count)}
		bufs[i] = make([]byte, 0, r.size)
	}
	for _, f := range c.frames {
		buf := bufs[f.run]
		start := len(buf)
		buf = append(buf, c.scratch[f.start:f.end]...)
		bufs[f.run] = buf
		runs[f.run].frames = append(runs[f.run].frames, buf[start:len(buf):len(buf)])
	}
	for _, s := range c.sampled {
		runs[s.run].sampled = append(runs[s.run].sampled, s.span)
	}
	if cap(c.scratch) > maxScratch {
		c.scratch = nil
	}
	return runs
}

// maxScratch is how large a buffer a drain keeps from one batch to the next.
const maxScratch = 1 << 20
