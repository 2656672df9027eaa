// Package network makes several hosts of one machine, so that what crosses a network can be tried: each host is a network namespace of
// the kernel with an address of its own, and all of them are connected by a switch in this process, which loses and delays packets as
// it is told, each direction of each pair by itself.
//
// It takes Linux and root. What runs on a host is started by a thread that has entered it ([Host.Enter]); package services does so for
// its servers. A namespace ends with the last process in it and [Network.Close].
//
// The addresses are of 198.18.0.0/15, which RFC 2544 sets apart for measurements, so no real host is hidden.
package network
