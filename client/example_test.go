package client_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"net/http"
	"time"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/wire"
)

// Price is a row of the table of docs/from-zero.md, whose topic is followed here.
type Price struct {
	Symbol string `json:"symbol"`
	Cents  int64  `json:"cents"`
}

// A service that keeps a topic's state in memory: all prices by their symbols.
func ExampleFollow() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	c, err := client.New("ws://127.0.0.1:8080/v1/ws", client.Config{
		OnError: func(err *client.Error) { log.Print(err) }, // it is being healed already
	})
	if err != nil {
		log.Fatal(err)
	}
	go c.Run(ctx) // one connection, for any number of topics

	for change, err := range client.Follow(ctx, c, "prices", client.Topic[map[string]Price]{
		Snapshot: client.SnapshotURL[map[string]Price](http.DefaultClient, "http://127.0.0.1:8000/api/prices"),
		Apply: func(old map[string]Price, e *wire.Event) (map[string]Price, error) {
			prices := maps.Clone(old) // a new state: the old one is never changed
			if e.Type == "gone" {
				delete(prices, e.Key)
				return prices, nil
			}
			var price Price
			if err := json.Unmarshal(e.Data, &price); err != nil {
				return nil, err
			}
			prices[e.Key] = price
			return prices, nil
		},
	}) {
		if err != nil {
			log.Print(err) // ctx has ended, or trying again would not help
			return
		}
		fmt.Println(change.State, change.Current)
	}
}

// A service that keeps its state in a database stores the token with it, in one transaction, and goes on from there
// after a restart.
func ExampleTopic_resume() {
	kept, err := json.Marshal(client.Token{Cursor: wire.Cursor{Epoch: "3-7d0a41c2", Offset: 1041}, Epoch: "3-7d0a41c2"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(kept))

	// Later, in another process:
	var token client.Token
	if err := json.Unmarshal(kept, &token); err != nil {
		log.Fatal(err)
	}
	topic := client.Topic[int64]{Resume: &client.Held[int64]{State: 17, Token: token}}
	fmt.Println(topic.Resume.State, "at", topic.Resume.Token.Cursor)
	// Output:
	// {"cursor":"3-7d0a41c2:1041","pending":[],"epoch":"3-7d0a41c2"}
	// 17 at 3-7d0a41c2:1041
}
