package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/commitcast/commitcast/internal/testkit"
)

// What is published of a topic goes to those broadcasters alone that have a subscriber of it, so that another broadcaster costs
// publishing nothing.
func TestPublishedToWhoWants(t *testing.T) {
	database, redisURL := testkit.Database(t), testkit.RedisURL(t)
	start(t, database, redisURL, "worker")
	var nodes []*node
	for range 3 {
		nodes = append(nodes, start(t, database, redisURL, "broadcaster"))
	}
	exec1(t, database, `SELECT commitcast.append('wanted', 'test', '1')`)
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	listeners := func() (n int64) {
		channels, err := client.PubSubShardChannels(t.Context(), "cc:*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range channels {
			if strings.HasSuffix(c, ":wanted") {
				n += client.PubSubShardNumSub(t.Context(), c).Val()[c]
			}
		}
		return n
	}
	for i, want := range []int64{1, 2} {
		c := testkit.Dial(t, nodes[i].URL)
		c.Subscribe(1, "wanted", c.Hello.Epoch+":0")
		c.Expect("subscribed")
		c.ExpectEvents("wanted", 1, 1)
		testkit.Eventually(t, 10*time.Second, func() bool { return listeners() == want }, "%d of three broadcasters listen", want)
	}
}
