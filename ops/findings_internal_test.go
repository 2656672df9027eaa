package ops

import (
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/stream"
)

// What is told of certificates, canaries and a Redis that has lost something, and when not.
func TestFindings(t *testing.T) {
	in := func(d time.Duration) map[string]time.Time { return map[string]time.Time{"clients": time.Now().Add(d)} }
	node := func(id Identity) *Status {
		if id.Broadcaster == nil {
			id.Broadcaster = &broadcaster.State{Node: "b1"}
		}
		return &Status{Nodes: []*Node{{Address: "b1:8081", Identity: &id}}}
	}
	redis := func(uptime int64, gaps float64) *Status {
		s := node(Identity{})
		s.Redis = Redis{Configured: true, Up: true, Server: &stream.Server{Uptime: uptime}}
		s.Nodes[0].Counters = map[string]float64{answered + "/gap": gaps}
		return s
	}
	tokens := func(of ...broadcaster.Tokens) *Status {
		s := &Status{}
		for _, t := range of {
			s.Nodes = append(s.Nodes, node(Identity{Broadcaster: &broadcaster.State{Node: "b", Tokens: t}}).Nodes...)
		}
		return s
	}
	inEpoch := func(database string, b broadcaster.State) *Status {
		s := node(Identity{Broadcaster: &b})
		s.Database.Up, s.Database.Epoch = true, database
		return s
	}
	for name, c := range map[string]struct {
		s     *Status
		level Level
		says  string
	}{
		"a certificate of 8 days": {node(Identity{Certificates: in(8 * 24 * time.Hour)}), "", "certificate"},
		"of 3 days":               {node(Identity{Certificates: in(3 * 24 * time.Hour)}), Warning, "its certificate for clients expires in"},
		"of yesterday":            {node(Identity{Certificates: in(-24 * time.Hour)}), Problem, "its certificate for clients has expired"},
		"one database of two away": {node(Identity{Broadcaster: &broadcaster.State{Ready: "not that of orders:*", Shards: []broadcaster.ShardState{{Topics: "**", Up: true}, {Topics: "orders:*"}}}}),
			Problem, "not every database answers it"},
		"both away":                   {node(Identity{Broadcaster: &broadcaster.State{Ready: "away", Shards: []broadcaster.ShardState{{Topics: "**"}, {Topics: "orders:*"}}}}), Problem, "it is not ready"},
		"another epoch":               {inEpoch("5-aaaa", broadcaster.State{Epoch: "4-aaaa"}), Warning, "it is in epoch 4-aaaa"},
		"that of the second of two":   {inEpoch("5-aaaa", broadcaster.State{Epoch: "4-bbbb", Shards: []broadcaster.ShardState{{Epoch: "4-bbbb", Up: true}, {Epoch: "5-aaaa", Up: true}}}), "", "it is in epoch"},
		"another than that of either": {inEpoch("6-aaaa", broadcaster.State{Epoch: "4-bbbb", Shards: []broadcaster.ShardState{{Epoch: "4-bbbb", Up: true}, {Epoch: "5-aaaa", Up: true}}}), Warning, "it is in epoch"},
		"a fresh canary":              {node(Identity{Canary: &CanaryState{Age: 1}}), "", "does not arrive"},
		"an old one":                  {node(Identity{Canary: &CanaryState{Age: 11, Why: "it hangs"}}), Problem, "what is committed does not arrive at its clients"},
		"of a node that is drained":   {node(Identity{Canary: &CanaryState{Age: 11}, Broadcaster: &broadcaster.State{Drained: true}}), "", "does not arrive"},
		"a young Redis":               {redis(5, 0), "", "Redis lacked"},
		"that has lost something":     {redis(5, 2), Warning, "Redis lacked events that it had confirmed"},
		"that had, long ago":          {redis(3600, 2), "", "Redis lacked"},
		"tokens that are renewed":     {tokens(broadcaster.Tokens{Expired: 500, Accepted: 100}, broadcaster.Tokens{Accepted: 395, Refused: 20, Unavailable: 20}), "", "tokens"},
		"that are not":                {tokens(broadcaster.Tokens{Expired: 500, Accepted: 100}, broadcaster.Tokens{Accepted: 379}), Problem, "expired and are not renewed"},
		"that cannot be checked":      {tokens(broadcaster.Tokens{Unavailable: 20}, broadcaster.Tokens{Unavailable: 1}), Problem, "cannot be checked"},
		"that are refused":            {tokens(broadcaster.Tokens{Refused: 21}), Warning, "are refused"},
		"few slow clients":            {node(Identity{Broadcaster: &broadcaster.State{Node: "b1", Slow: 6, Connections: 1000}}), "", "have taken nothing"},
		"too many":                    {node(Identity{Broadcaster: &broadcaster.State{Node: "b1", Slow: 6, Connections: 100}}), Warning, "6 clients have taken nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			var list []Finding
			add := func(f Finding) { list = append(list, f) }
			findRedis(c.s, add)
			findTokens(c.s, add)
			for _, n := range c.s.Nodes {
				(&Console{}).findNode(c.s, n, add)
			}
			findCanaries(c.s, add)
			var found *Finding
			for i := range list {
				if strings.Contains(list[i].What, c.says) {
					found = &list[i]
				}
			}
			if (found == nil) != (c.level == "") || found != nil && found.Level != c.level {
				t.Errorf("%+v", list)
			}
		})
	}
}
