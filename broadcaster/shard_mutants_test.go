package broadcaster_test

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

// What keeps two databases apart, taken out, is missed by the tests of shards.
func TestShardMutants(t *testing.T) {
	testkit.Mutants(t, "(TestShards|TestShardGoesBack|TestShardDown|TestShardUnknown)", []testkit.Mutation{
		{Name: "every topic is in the first database", File: "shard.go", Cond: true,
			Old: "p.Match(topic)", New: "false",
			Caught: "shard_test.go"},
		{Name: "a new epoch is that of every topic", File: "shard.go", Cond: true,
			Old: "t.shard != sh", New: "false",
			Caught: "shard_test.go"},
		{Name: "a heartbeat names one epoch", File: "session.go",
			Old:    "heads = append(heads, wire.Head{Topic: sub.t.name, Offset: max(sub.t.head(), sub.cursor), Epoch: sub.epoch})",
			New:    "heads = append(heads, wire.Head{Topic: sub.t.name, Offset: max(sub.t.head(), sub.cursor)})",
			Caught: "a heartbeat says of two databases"},
		{Name: "a heartbeat leaves out what is in another epoch", File: "session.go", Cond: true,
			Old: "sub.epoch == sub.t.shard.Epoch()", New: "sub.epoch == epoch",
			Caught: "no heartbeat names orders:1"},
		{Name: "what is lost is looked for in the first database", File: "topic.go",
			Old:    "run, err := t.shard.replayer.fetch(ctx, h)\n\treturn b.healed(t, h, run, err)",
			New:    "run, err := b.shards[0].replayer.fetch(ctx, h)\n\treturn b.healed(t, h, run, err)",
			Caught: "shard_test.go"},
		{Name: "one database away is not ready", File: "broadcaster.go", Cond: true,
			Old: "len(down) == len(b.shards)", New: "len(down) > 0",
			Caught: "readiness says so"},
		{Name: "a topic without a history is followed", File: "shard.go", Cond: true,
			Old: `b.shardOf(topic).Epoch() != ""`, New: "true",
			Caught: "events: 200"},
	}, "-test.failfast")
}
