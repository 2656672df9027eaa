// Package broadcaster is stage 3: it carries a topic's events from the stream to WebSocket clients that speak
// commitcast.v1.
//
// A [Broadcaster] holds no state that matters: any number run side by side behind any load balancer, and one that
// dies costs its clients a reconnect. A topic with local subscribers has one bounded log of finished frames, shared
// by all of them; a subscriber is a cursor into it. A subscriber that fell out of the log is served from the stream,
// then from the [Journal], then told to reset: never with silence.
//
// Guarantees: a subscriber is shown offsets after+1, after+2, … of one topic, each once, without a hole; it may be
// ended by a reset with a reason. Every read, of memory, stream, journal or message, is checked for contiguity.
// "subscribed" is sent only when the subscription to the stream is live, or when the stream is down and the journal
// is being polled instead.
//
// What a subscriber is shown is decided in splice.go alone, by two machines without clock, goroutine or I/O. Around them data
// flows one way through the files: heads.go and the stream's messages (topic.go) fill the log (log.go); sessions
// (session.go, subscription.go, join.go) read it; what it does not hold comes from replay.go. fence.go ends who may read a topic no
// longer.
//
// Lifecycle: New, then Run for as long as Handler serves. When Run's context ends, clients are told when to come
// back and are closed, spread over Config.Drain. All exported methods are safe for concurrent use.
package broadcaster
