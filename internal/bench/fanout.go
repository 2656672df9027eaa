package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"
)

// fanResult is one fan-out: Clients subscribers of one topic.
type fanResult struct {
	Kind          string  `json:"kind"`
	Clients       int     `json:"clients"`
	Rate          float64 `json:"rate"`
	Events        int64   `json:"events"`
	Deliveries    int64   `json:"deliveries"`
	Messages      int64   `json:"messages"`
	PerSecond     float64 `json:"per_second"`
	P50           float64 `json:"p50_ms"`
	P99           float64 `json:"p99_ms"`
	CPUPerMillion float64 `json:"server_cpu_s_per_million"`
	RSS           int64   `json:"server_rss"`
	Heap          int64   `json:"server_heap"`
	Stacks        int64   `json:"server_stacks"`
}

// child is a process of this program in another role.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startChild(role string, env ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, role)}
	c.cmd.Stderr = os.Stderr
	c.cmd.Env = append(os.Environ(), env...)
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(stdout)
	return c, c.cmd.Start()
}

func (c *child) tell(v any) error { return json.NewEncoder(c.in).Encode(v) }

func (c *child) end() {
	c.in.Close()
	timer := time.AfterFunc(5*time.Second, func() { c.cmd.Process.Kill() })
	c.cmd.Wait()
	timer.Stop()
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// fanout runs one fan-out: a server and a swarm, each a process of its own.
func fanout(server fanOrder, clients, stalled int) (fanResult, error) {
	result := fanResult{Kind: server.Kind, Clients: clients, Rate: server.Rate, Events: server.Events}
	s, err := startChild("fanserver")
	if err != nil {
		return result, err
	}
	defer s.end()
	var report fanReport
	if err := s.tell(server); err != nil {
		return result, err
	}
	if err := s.out.Decode(&report); err != nil {
		return result, fmt.Errorf("fanserver: %w", err)
	}
	w, err := startChild("swarm")
	if err != nil {
		return result, err
	}
	defer w.end()
	sample := int(server.Events * int64(clients) / 500_000)
	if err := w.tell(swarmOrder{Addr: report.Addr, Clients: clients + stalled, Stalled: stalled, Topic: server.Topic, Events: server.Events, Sample: sample}); err != nil {
		return result, err
	}
	var took time.Duration
	var latencies []int64
	for began := time.Now(); ; {
		var r swarmReport
		if err := w.out.Decode(&r); err != nil {
			return result, fmt.Errorf("swarm: %w", err)
		}
		if r.Error != "" {
			return result, fmt.Errorf("swarm: %s", r.Error)
		}
		if r.Done {
			took = time.Since(began)
			result.Deliveries, result.Messages, latencies = r.Events, r.Messages, r.Latencies
			break
		}
		if r.Ready {
			began = time.Now()
		}
		if err := s.tell(fanProgress{Start: r.Ready, Slowest: r.Slowest}); err != nil {
			return result, err
		}
	}
	if err := s.tell(fanProgress{Quit: true}); err != nil {
		return result, err
	}
	if err := s.out.Decode(&report); err != nil {
		return result, err
	}
	result.PerSecond = float64(result.Deliveries) / took.Seconds()
	result.CPUPerMillion = report.CPU / float64(result.Deliveries) * 1e6
	result.RSS, result.Heap, result.Stacks = report.RSS, report.Heap, report.Stacks
	result.P50, result.P99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
	return result, nil
}

// percentile of nanoseconds, in milliseconds. It sorts its argument.
func percentile(ns []int64, p float64) float64 {
	if len(ns) == 0 {
		return 0
	}
	slices.Sort(ns)
	return float64(ns[min(len(ns)-1, int(p*float64(len(ns))))]) / 1e6
}
