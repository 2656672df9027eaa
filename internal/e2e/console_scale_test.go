package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/internal/testkit"
)

// What each page of the console asks, with 100,000 topics, 50,000 dead letters and 10 nodes, answers within 300 ms, on a machine that
// does little else: CONSOLE_SCALE=1 go test ./internal/e2e -run TestConsoleAtScale -v. (That no question reads a whole table is ops'
// TestListsByIndex, always.)
func TestConsoleAtScale(t *testing.T) {
	if os.Getenv("CONSOLE_SCALE") == "" {
		t.Skip("CONSOLE_SCALE=1 measures; it starts 10 nodes")
	}
	const nodes, times, limit = 10, 20, 300 * time.Millisecond
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	testkit.Fill(t, pool)
	for i := range nodes {
		start(t, database, redisURL, "broadcaster", fmt.Sprint("--node=b", i+1))
	}
	token := testkit.File(t, "token", []byte(opsToken))
	b := newVisitor(t, consoleOf(t, database, redisURL, "operator", "--ops-token-file="+token).URL)
	b.login("alice", opsToken)
	testkit.Eventually(t, time.Minute, func() bool {
		_, text, _ := b.do("GET", "api/status", nil, nil)
		return strings.Contains(text, `"b10"`)
	}, "the console sees the last node")
	for _, path := range []string{"", "api/status", "api/topics", "api/topics?order=lag", "api/topics?prefix=market:99", "api/topic?name=market:77", "api/trace?name=market:77&offset=2",
		"api/parked", "api/dead", "api/dead?topic=market:7", "api/dead/letter?topic=market:7&offset=20007", "api/clients?node=b1", "api/audit", "api/epochs", "river/"} {
		var took []time.Duration
		for range times {
			began := time.Now()
			status, text, _ := b.do("GET", path, nil, nil)
			took = append(took, time.Since(began))
			if status != http.StatusOK {
				t.Fatalf("%s: %d %.200s", path, status, text)
			}
		}
		slices.Sort(took)
		t.Logf("%-48s median %6v  slowest %6v", path, took[times/2].Round(100*time.Microsecond), took[times-1].Round(100*time.Microsecond))
		if took[times-1] > limit {
			t.Errorf("%s took up to %v", path, took[times-1])
		}
	}
}
