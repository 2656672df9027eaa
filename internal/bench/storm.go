package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// stormResult is a mass reconnect: Clients come back at once to one topic, each Missed events behind, while others are
// connected and get live events.
type stormResult struct {
	Clients    int     `json:"clients"`
	Missed     int64   `json:"missed"`
	Seconds    float64 `json:"seconds"`     // from the first dial to the last client that is caught up
	EventsRead float64 `json:"events_read"` // from Stream and journal; each missed event once is the least
	LiveP50    float64 `json:"live_p50_ms"` // of the connected, meanwhile
	LiveP99    float64 `json:"live_p99_ms"`
}

const (
	stormMissed = 500
	stormLive   = 100 // clients that are connected all the time
	stormTopic  = "storm"
)

// storm runs one mass reconnect against whole processes: Postgres, Redis, worker, broadcaster.
func storm(ctx context.Context, database string, clients int) (stormResult, error) {
	result := stormResult{Clients: clients, Missed: stormMissed}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return result, err
	}
	defer pool.Close()
	worker, err := node(ctx, database, "worker")
	if err != nil {
		return result, err
	}
	defer worker.stop()
	broadcaster, err := node(ctx, database, "broadcaster", "--listen=127.0.0.1:0", "--auth=off", "--drain=10ms")
	if err != nil {
		return result, err
	}
	defer broadcaster.stop()
	addr := broadcaster.clients
	if _, err := pool.Exec(ctx, `INSERT INTO commitcast.outbox (partition, topic, type, data)
		SELECT commitcast.partition_of($1), $1, 'bench', '{"price":0.53,"volume":1200}' FROM generate_series(1, $2)`, stormTopic, stormMissed); err != nil {
		return result, err
	}
	var epoch string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var published int64
		err := pool.QueryRow(ctx, `SELECT sum(published), (SELECT name FROM commitcast.epoch ORDER BY ordinal DESC LIMIT 1)
			FROM commitcast.partition`).Scan(&published, &epoch)
		if err != nil || published == stormMissed {
			break
		}
		if time.Now().After(deadline) {
			return result, fmt.Errorf("storm: %d of %d events published", published, stormMissed)
		}
	}

	// The connected follow another topic, on which an event comes every 10 ms until the storm is over.
	live, err := startChild("swarm")
	if err != nil {
		return result, err
	}
	defer live.kill()
	const liveEvents = 1 << 40 // they end with the storm
	if err := live.tell(swarmOrder{Addr: addr, Clients: stormLive, Topic: "live", Events: liveEvents}); err != nil {
		return result, err
	}
	var ready swarmReport
	if err := live.out.Decode(&ready); err != nil || !ready.Ready {
		return result, fmt.Errorf("storm: the connected: %v %s", err, ready.Error)
	}
	over := make(chan struct{})
	writing := make(chan error, 1)
	go func() { // ends when the storm is over
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-over:
				writing <- nil
				return
			case now := <-ticker.C:
				if _, err := pool.Exec(ctx, `SELECT commitcast.append('live', 'bench', $1)`, fmt.Sprintf(`{"t":%d}`, now.UnixNano())); err != nil {
					writing <- err
					return
				}
			}
		}
	}()

	before := replayed(broadcaster.ops)
	swarm, err := startChild("swarm")
	if err != nil {
		return result, err
	}
	defer swarm.end()
	began := time.Now()
	if err := swarm.tell(swarmOrder{Addr: addr, Clients: clients, Topic: stormTopic, After: epoch + ":0", Events: stormMissed, Sample: 1 << 30}); err != nil {
		return result, err
	}
	for {
		var r swarmReport
		if err := swarm.out.Decode(&r); err != nil {
			return result, fmt.Errorf("storm: %w", err)
		}
		if r.Error != "" {
			return result, fmt.Errorf("storm: %s", r.Error)
		}
		if r.Done {
			break
		}
	}
	result.Seconds = time.Since(began).Seconds()
	result.EventsRead = replayed(broadcaster.ops) - before
	close(over)
	if err := <-writing; err != nil {
		return result, err
	}
	if err := live.tell(swarmStop{Stop: true}); err != nil {
		return result, err
	}
	for {
		var r swarmReport
		if err := live.out.Decode(&r); err != nil {
			return result, fmt.Errorf("storm: the connected: %w", err)
		}
		if r.Error != "" {
			return result, fmt.Errorf("storm: the connected: %s", r.Error)
		}
		if r.Done {
			result.LiveP50, result.LiveP99 = percentile(r.Latencies, 0.5), percentile(r.Latencies, 0.99)
			return result, nil
		}
	}
}

// replayed is how many events a broadcaster has read from Stream and journal for subscribers that were behind.
func replayed(ops string) (n float64) {
	resp, err := http.Get(ops + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(io.LimitReader(resp.Body, 4<<20)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "} "); ok && strings.HasPrefix(name, "commitcast_broadcaster_events_replayed_total") && !strings.Contains(name, "memory") {
			v, _ := strconv.ParseFloat(value, 64)
			n += v
		}
	}
	return n
}
