package stream

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/wire"
)

//go:embed publish.lua
var publishSource string

//go:embed range.lua
var rangeSource string

var (
	publishScript = redis.NewScript(publishSource)
	rangeScript   = redis.NewScript(rangeSource)
)

// Publish implements [Stream]: all offers in one pipeline. Offers of one topic are taken in the order given.
func (r *Redis) Publish(ctx context.Context, offers []Offer) (answers []Answer, err error) {
	if len(offers) == 0 {
		return nil, nil
	}
	if err := r.checkVersion(ctx); err != nil {
		return nil, err
	}
	start := time.Now()
	defer func() { r.metrics.published(start, len(offers), answers, err) }()

	answers = make([]Answer, len(offers))
	calls := make([]publishCall, 0, len(offers))
	for i, o := range offers {
		if err := o.check(); err != nil {
			answers[i].Err = err
			continue
		}
		for _, part := range o.parts() {
			calls = append(calls, publishCall{offer: i, key: part.key(), args: r.publishArgs(part)})
		}
	}
	if err := r.call(ctx, calls); err != nil {
		return nil, unavailable(fmt.Sprintf("publish %d runs to redis", len(offers)), err)
	}
	for _, c := range calls {
		a := answerOf(c.key, c.cmd)
		if prev := &answers[c.offer]; *prev == (Answer{}) {
			*prev = a
		} else {
			*prev = prev.merge(a)
		}
	}
	return answers, nil
}

// publishCall is one call of publish.lua.
type publishCall struct {
	offer int // index into offers
	key   string
	args  []any
	cmd   *redis.Cmd
}

// call runs the calls in one pipeline, and those that found no script in a second one, by its text. These announce in
// any case: had someone else loaded the script in between, a later run may have been taken before. It fails if any call
// failed for a reason that is not its own.
func (r *Redis) call(ctx context.Context, calls []publishCall) error {
	if len(calls) == 0 {
		return nil
	}
	pipe := r.client.Pipeline()
	for i := range calls {
		c := &calls[i]
		c.cmd = pipe.EvalSha(ctx, publishScript.Hash(), []string{c.key}, c.args...)
	}
	_, execErr := pipe.Exec(ctx)
	var missing []*publishCall
	for i := range calls {
		if redis.HasErrorPrefix(calls[i].cmd.Err(), "NOSCRIPT") {
			missing = append(missing, &calls[i])
		} else if err := calls[i].unavailable(execErr); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	pipe = r.client.Pipeline()
	for _, c := range missing {
		c.args[announceArg] = flag(true)
		c.cmd = pipe.Eval(ctx, publishSource, []string{c.key}, c.args...)
	}
	_, execErr = pipe.Exec(ctx)
	for _, c := range missing {
		if err := c.unavailable(execErr); err != nil {
			return err
		}
	}
	return nil
}

// unavailable is why the call says nothing about its run; nil if it does. Each command holds its own error, except that
// go-redis leaves all of them with neither error nor reply when the server answers to the greeting of a new connection
// with an error: a changed password, say. Then only Exec tells.
func (c *publishCall) unavailable(execErr error) error {
	switch err := c.cmd.Err(); {
	case err == nil && c.cmd.Val() == nil: // the script never answers with nil
		return cmp.Or(execErr, errNoReply)
	case err != nil && isUnavailable(err):
		return err
	}
	return nil
}

var errNoReply = errors.New("no reply")

const announceArg = 3 // its index in publishArgs

// publishArgs are the arguments of publish.lua.
func (r *Redis) publishArgs(o Offer) []any {
	args := make([]any, 0, 8+len(o.Frames))
	args = append(args,
		strconv.FormatInt(o.First, 10), strconv.FormatInt(o.Last(), 10), flag(o.Restart), flag(o.Announce),
		strconv.Itoa(r.cfg.MaxLen), strconv.FormatInt(max(1, r.cfg.MaxAge.Milliseconds()), 10),
		messageVersion+" "+o.Epoch, o.Topic)
	for _, f := range o.Frames {
		args = append(args, f)
	}
	return args
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// answerOf reads what publish.lua returned. A refusal by a rule of access names no key.
func answerOf(key string, cmd *redis.Cmd) Answer {
	reply, err := cmd.StringSlice()
	if err != nil {
		return Answer{Err: fmt.Errorf("publish %.200s to redis: %w", key, err)}
	}
	return decodeAnswer(reply)
}

// decodeAnswer reads the reply of publish.lua: an outcome, and the offset that the stream would take next.
func decodeAnswer(reply []string) Answer {
	if len(reply) == 2 {
		outcome := map[string]Outcome{"A": Appended, "D": Duplicate, "G": Gap}[reply[0]]
		next, err := strconv.ParseInt(reply[1], 10, 64)
		if err == nil && outcome != 0 && next >= 1 && next <= wire.MaxInteger+1 {
			return Answer{Outcome: outcome, Next: next}
		}
	}
	return Answer{Err: fmt.Errorf("publish to redis: the script answered %.200q", reply)}
}

// Range implements [Stream].
func (r *Redis) Range(ctx context.Context, ch Channel, after int64, limit int) (Run, error) {
	run := Run{Channel: ch, First: after + 1}
	if after < 0 {
		return run, nil // no event has such an offset
	}
	if err := r.checkVersion(ctx); err != nil {
		return run, err
	}
	frames, err := rangeScript.RunRO(ctx, r.client, []string{ch.key()},
		strconv.FormatInt(after+1, 10), max(1, min(limit, MaxRangeFrames)), MaxRangeBytes).StringSlice()
	if err != nil && !errors.Is(err, redis.Nil) {
		return run, unavailable("read a range from redis", err)
	}
	run.Frames = decodeRange(frames)
	return run, nil
}

// decodeRange reads the reply of range.lua. It ends before the first entry that is no frame of ours, as if the Stream
// did not hold it: whoever wrote it there, it must not reach a subscriber.
func decodeRange(reply []string) [][]byte {
	if len(reply) == 0 {
		return nil
	}
	frames := make([][]byte, 0, min(len(reply), MaxRangeFrames))
	for _, f := range reply[:min(len(reply), MaxRangeFrames)] {
		if len(f) == 0 || len(f) > MaxFrameBytes || strings.IndexByte(f, '\n') >= 0 {
			break
		}
		frames = append(frames, []byte(f))
	}
	return frames
}
