// Package client follows topics of a Commitcast broadcaster from Go: for services that keep something of their own up to
// date, such as a cache, a projection or another database, and for tests. It keeps the same contract as the TypeScript
// package in client/ts.
//
//	c, err := client.New("wss://example.org/v1/ws", client.Config{})
//	go c.Run(ctx)
//	for change, err := range client.Follow(ctx, c, "market:42", client.Topic[Market]{
//		Snapshot: client.SnapshotURL[Market](http.DefaultClient, "https://example.org/api/markets/42"),
//		Apply:    func(m Market, e *wire.Event) (Market, error) { … },
//	}) {
//		if err != nil {
//			return err
//		}
//		show(change.State, change.Current)
//	}
//
// # Guarantees
//
// The state of a [Change] holds every event once, also events that are not idempotent. What was missed is found: a hole at
// once, a lost last message or a subscription that the server forgot within two heartbeats; it is healed from the own
// cursor, or by the snapshot if that does not help. A database that went back in time is never mixed with what was seen
// before. Reconnects have full jitter and obey the server's word.
//
// A change's state and [Token] belong together. A service that stores both in one transaction, and gives them as
// [Topic].Resume after a restart, goes on without a snapshot, without a gap and without an event applied twice.
//
// # Concurrency and lifecycle
//
// One [Client] is one connection, for any number of topics; [Client.Run] makes and keeps it, in the caller's goroutine.
// Each Follow runs in the goroutine that ranges over it: snapshots, Apply and the loop's body are called there, and nowhere
// else. One that is slow holds up nobody: frames wait for it within [MaxQueued] and [MaxQueuedBytes]; what comes beyond is
// thrown away, and replayed when it is ready. There are no other goroutines.
package client
