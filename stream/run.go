package stream

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/commitcast/commitcast/wire"
)

// Limits of what is published. A longer run is published in parts, in order, with one answer for all.
const (
	// MaxFrameBytes is the largest frame: 256 KiB of data, 4 KiB of headers, names, and room. Larger frames are refused.
	MaxFrameBytes = 320 << 10
	// MaxMessageFrames and MaxMessageBytes bound the frames of one message, so that neither a script nor a message
	// keeps Redis or a slow reader busy for long.
	MaxMessageFrames = 1_000
	MaxMessageBytes  = 512 << 10
)

// check says why r cannot be published as it is: a mistake of the caller, found before anything is sent.
func (r Run) check() error {
	if err := r.Channel.check(); err != nil {
		return err
	}
	switch {
	case len(r.Frames) == 0:
		return errors.New("stream: the run holds no frames")
	case r.First < 1 || r.Last() > wire.MaxInteger:
		return fmt.Errorf("stream: offsets %d to %d are not in 1..2^53-1", r.First, r.Last())
	}
	for i, f := range r.Frames {
		switch {
		case len(f) == 0:
			return fmt.Errorf("stream: the frame of offset %d is empty", r.First+int64(i))
		case len(f) > MaxFrameBytes:
			return fmt.Errorf("stream: the frame of offset %d has %d bytes, more than %d", r.First+int64(i), len(f), MaxFrameBytes)
		case bytes.IndexByte(f, '\n') >= 0:
			return fmt.Errorf("stream: the frame of offset %d holds a newline", r.First+int64(i))
		}
	}
	return nil
}

// from is the part of r that begins at offset first, which must not be beyond the run.
func (r Run) from(first int64) Run {
	if first > r.First {
		r.Frames = r.Frames[first-r.First:]
		r.First = first
	}
	return r
}

// size is the bytes of the frames.
func (r Run) size() int {
	n := 0
	for _, f := range r.Frames {
		n += len(f)
	}
	return n
}

// parts cuts an offer into pieces that fit one message each. Only the first piece restarts the stream.
func (o Offer) parts() []Offer {
	var parts []Offer
	for len(o.Frames) > 0 {
		n, size := 0, 0
		for n < len(o.Frames) && n < MaxMessageFrames && (n == 0 || size+len(o.Frames[n])+1 <= MaxMessageBytes) {
			size += len(o.Frames[n]) + 1
			n++
		}
		part := o
		part.Frames = o.Frames[:n]
		part.Restart = o.Restart && len(parts) == 0
		parts = append(parts, part)
		o.Frames = o.Frames[n:]
		o.First += int64(n)
	}
	return parts
}

// merge is the answer to an offer whose part before next was answered with a.
func (a Answer) merge(next Answer) Answer {
	switch {
	case a.Err != nil || a.Outcome == Gap:
		return a // what follows is a gap after this one
	case a.Outcome == Appended && next.Outcome == Duplicate:
		return Answer{Outcome: Appended, Next: next.Next}
	default:
		return next
	}
}
