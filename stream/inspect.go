package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Held is what the stream holds of a topic.
type Held struct {
	First  int64 `json:"first"` // offset; 0: nothing
	Last   int64 `json:"last"`
	Length int64 `json:"length"` // Last - First + 1, or somebody was at it
	Bytes  int64 `json:"bytes"`  // about
	// Hears is how many connections listen to its channel.
	Hears int64 `json:"hears"`
}

// Inspect tells what Redis holds of a topic. An error wraps ErrUnavailable.
func (r *Redis) Inspect(ctx context.Context, ch Channel) (Held, error) {
	if err := ch.check(); err != nil {
		return Held{}, err
	}
	master, err := r.servers.with(ctx, ch.key())
	if err != nil {
		return Held{}, unavailable("look at a stream", err)
	}
	pipe := master.Pipeline()
	info := pipe.XInfoStream(ctx, ch.key())
	size := pipe.MemoryUsage(ctx, ch.key())
	hears := pipe.PubSubShardNumSub(ctx, ch.key())
	_, err = pipe.Exec(ctx)
	var h Held
	if n, herr := hears.Result(); herr == nil {
		h.Hears = n[ch.key()]
	}
	switch s, serr := info.Result(); {
	case serr == nil:
		h.Length = s.Length
		h.First, h.Last = offsetOf(s.FirstEntry.ID), offsetOf(s.LastGeneratedID)
		h.Bytes, _ = size.Result()
		return h, nil
	case strings.Contains(serr.Error(), "no such key"):
		return h, nil
	default:
		return h, unavailable("look at a stream", errors.Join(serr, err))
	}
}

func offsetOf(id string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(id, "-0"), 10, 64)
	return n
}

// Server is what an operator should know of a Redis.
type Server struct {
	Addr             string        `json:"addr"`
	Version          string        `json:"version"`
	Took             time.Duration `json:"took_ns"` // one round trip
	Clock            time.Time     `json:"clock"`   // zero: it may not be asked
	Mode             string        `json:"mode"`
	Role             string        `json:"role"`
	UsedMemory       int64         `json:"used_memory"`
	MaxMemory        int64         `json:"max_memory"` // 0: no limit
	MaxMemoryPolicy  string        `json:"max_memory_policy"`
	PubSubBuffer     string        `json:"pubsub_buffer"` // client-output-buffer-limit pubsub: hard, soft, seconds; "" if it may not be asked
	ConnectedClients int64         `json:"connected_clients"`
	MaxClients       int64         `json:"max_clients"`
	Evicted          int64         `json:"evicted_keys"`
	Uptime           int64         `json:"uptime_s"` // seconds; of a cluster that of the master that was started last
}

// Server asks Redis about itself; of a cluster every master: memory, clients and evictions are those of all, versions and the
// rest those of one, the oldest. An error wraps ErrUnavailable.
func (r *Redis) Server(ctx context.Context) (Server, error) {
	s := Server{Addr: r.where}
	var mu sync.Mutex // of what follows: a cluster's masters are asked at once
	n := 0
	err := r.servers.each(ctx, func(ctx context.Context, master *redis.Client) error {
		one, err := serverOf(ctx, master)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			s.add(one, n == 0)
			n++
		}
		return err
	})
	if err == nil && n == 0 {
		err = errors.New("the cluster has no masters")
	}
	if err != nil {
		return Server{Addr: r.where}, unavailable("ask redis about itself", err)
	}
	return s, nil
}

// add adds what one more master says.
func (s *Server) add(one Server, first bool) {
	sum := *s
	if first || older(one.Version, s.Version) {
		*s = one
		s.Addr = sum.Addr
	}
	if first {
		return
	}
	s.UsedMemory, s.Evicted = sum.UsedMemory+one.UsedMemory, sum.Evicted+one.Evicted
	s.ConnectedClients, s.MaxClients = sum.ConnectedClients+one.ConnectedClients, sum.MaxClients+one.MaxClients
	s.Took = max(sum.Took, one.Took)
	s.Uptime = min(sum.Uptime, one.Uptime)
	if s.MaxMemory = sum.MaxMemory + one.MaxMemory; sum.MaxMemory == 0 || one.MaxMemory == 0 {
		s.MaxMemory = 0 // one without a limit is enough
	}
}

// older compares versions, as in 7.0.15.
func older(a, b string) bool {
	for a != "" || b != "" {
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		m, _ := strconv.Atoi(x)
		n, _ := strconv.Atoi(y)
		if m != n {
			return m < n
		}
	}
	return false
}

// serverOf asks one server.
func serverOf(ctx context.Context, client *redis.Client) (s Server, err error) {
	start := time.Now()
	info, err := client.Info(ctx).Result()
	if err != nil {
		return s, err
	}
	s.Took = time.Since(start)
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch n, _ := strconv.ParseInt(value, 10, 64); name {
		case "redis_version":
			s.Version = value
		case "redis_mode", "server_mode": // of Valkey
			s.Mode = value
		case "role":
			s.Role = value
		case "used_memory":
			s.UsedMemory = n
		case "maxmemory":
			s.MaxMemory = n
		case "maxmemory_policy":
			s.MaxMemoryPolicy = value
		case "connected_clients":
			s.ConnectedClients = n
		case "maxclients":
			s.MaxClients = n
		case "evicted_keys":
			s.Evicted = n
		case "uptime_in_seconds":
			s.Uptime = n
		}
	}
	if t, err := client.Time(ctx).Result(); err == nil {
		s.Clock = t
	}
	if config, err := client.ConfigGet(ctx, "client-output-buffer-limit").Result(); err == nil {
		if _, after, ok := strings.Cut(config["client-output-buffer-limit"], "pubsub "); ok {
			s.PubSubBuffer = after
		}
	}
	return s, nil
}

// Rights tries, in a corner that no topic has, everything that workers and broadcasters do, and says what the user may not: an
// error of the first command that is refused. An error that wraps ErrUnavailable says nothing about rights.
func (r *Redis) Rights(ctx context.Context) error {
	ch := Channel{Epoch: "1-cafe", Topic: "canary"} // no database has an epoch of that name: theirs have eight digits
	answers, err := r.Publish(ctx, []Offer{{Run: Run{Channel: ch, First: 1, Frames: [][]byte{[]byte("{}")}}, Restart: true}})
	if err != nil {
		return err
	}
	if answers[0].Err != nil {
		return fmt.Errorf("publish: %w", answers[0].Err)
	}
	if _, err := r.Range(ctx, ch, 0, 1); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if err := r.Tick(ctx); err != nil {
		return fmt.Errorf("tick: %w", err)
	}
	c, err := r.connectFor(ctx, ch.key())
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(r.cfg.Timeout)
	}
	c.SetReadDeadline(deadline)
	if err := c.write(appendCommand(nil, "SSUBSCRIBE", ch.key())); err != nil {
		return unavailable("subscribe", err)
	}
	var refused replyError
	if _, _, err := readHead(c.br); errors.As(err, &refused) {
		return fmt.Errorf("subscribe: %w", refused)
	} else if err != nil {
		return unavailable("subscribe", err)
	}
	return nil
}
