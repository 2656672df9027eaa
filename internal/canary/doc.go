// Package canary sends an event every second the whole way, and watches it arrive as a client would see it: through a
// socket of this node's own listener, by the ordinary protocol. "No messages, health green" cannot happen to a node that has one.
//
// Writing is a function of the database, commitcast.sing, which lets one event a second pass, whoever asks: every node asks every
// second, and no node has to be elected, or to be missed. Watching is a WebSocket that is opened anew every 5 seconds, so that a
// listener which takes no more clients is found out although those that it has go on.
//
// What is watched: how old the newest event is that has arrived ([Canary.Age]), by the database's clock, so that neither a
// clock that is off nor a backlog passes for fresh; events that did not come; events that came twice or out of order.
package canary
