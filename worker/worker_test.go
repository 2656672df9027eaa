package worker

import (
	"testing"
	"time"
)

func TestOneEvent(t *testing.T) {
	b := newBench(t)
	b.run(Config{})
	b.append("market:1", `{"a": 1}`)
	b.published(5 * time.Second)
	topics := b.journal()
	if len(topics["market:1"]) != 1 {
		t.Fatalf("journal: %v", topics)
	}
	b.checkStream(topics, fromStart)
}
