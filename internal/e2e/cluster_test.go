package e2e

import (
	"testing"
	"time"

	"github.com/commitcast/commitcast/internal/testkit"
)

// Two workers and two broadcasters on a Redis Cluster, under load: a slot moves, and a master is killed. Nobody misses an event or
// gets one twice, and what was committed meanwhile comes within the times that docs/operations.md states.
func TestClusterUnderLoad(t *testing.T) {
	t.Parallel()
	cluster, database := testkit.RedisCluster(t), testkit.Database(t)
	start(t, database, cluster.URL(), "worker")
	start(t, database, cluster.URL(), "worker")
	nodes := []*node{start(t, database, cluster.URL(), "broadcaster"), start(t, database, cluster.URL(), "broadcaster")}
	l := startLoad(t, database, []string{nodes[0].URL, nodes[1].URL}, 6, 200)
	passes(t, time.Second)

	// For a second clients are half told where the slot is: its keys are on one side and its subscribers on the other.
	moved := time.Now()
	if err := cluster.MoveSlot(t.Context(), "cc:{p7}:", func() { passes(t, time.Second) }); err != nil {
		t.Fatal(err)
	}
	settled := time.Now()
	passes(t, 2*time.Second)
	for _, n := range nodes {
		pushed(t, n)
	}

	master, err := cluster.Master(t.Context(), "cc:{p3}:")
	if err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	master.Kill()
	testkit.Eventually(t, 20*time.Second, func() bool {
		m, err := cluster.Master(t.Context(), "cc:{p3}:")
		return err == nil && m != master
	}, "a replica takes over")
	failed := time.Now()
	for _, n := range nodes {
		pushed(t, n)
	}
	back := time.Now()
	passes(t, time.Second)
	l.stop()

	p50, p99, most := l.between(moved, settled.Add(2*time.Second))
	t.Logf("slot moved: p50 %v, p99 %v, at most %v", p50, p99, most)
	if most > 4*time.Second {
		t.Errorf("an event took %v while a slot moved, more than 4 s", most)
	}
	p50, p99, most = l.between(killed, back)
	t.Logf("master killed: taken over after %v, pushed again after %v; p50 %v, p99 %v, at most %v", failed.Sub(killed), back.Sub(killed), p50, p99, most)
	if p99 > 8*time.Second {
		t.Errorf("99 of 100 events took up to %v when a master was killed, more than 8 s", p99)
	}
	p50, p99, most = l.between(back, time.Now())
	t.Logf("afterwards: p50 %v, p99 %v, at most %v", p50, p99, most)
}

// The same when Sentinels make the replica of a killed master one.
func TestSentinelUnderLoad(t *testing.T) {
	t.Parallel()
	sentinels, database := testkit.RedisSentinels(t), testkit.Database(t)
	start(t, database, sentinels.URL(), "worker")
	nodes := []*node{start(t, database, sentinels.URL(), "broadcaster"), start(t, database, sentinels.URL(), "broadcaster")}
	l := startLoad(t, database, []string{nodes[0].URL, nodes[1].URL}, 6, 200)
	passes(t, time.Second)
	master, err := sentinels.Master(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	master.Kill()
	testkit.Eventually(t, 30*time.Second, func() bool {
		m, err := sentinels.Master(t.Context())
		return err == nil && m != master
	}, "a replica takes over")
	failed := time.Now()
	for _, n := range nodes {
		pushed(t, n)
	}
	back := time.Now()
	passes(t, time.Second)
	l.stop()
	p50, p99, most := l.between(killed, back)
	t.Logf("master killed: taken over after %v, pushed again after %v; p50 %v, p99 %v, at most %v", failed.Sub(killed), back.Sub(killed), p50, p99, most)
	if p99 > 8*time.Second {
		t.Errorf("99 of 100 events took up to %v, more than 8 s", p99)
	}
}
