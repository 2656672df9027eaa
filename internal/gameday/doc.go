// Package gameday breaks a running system in eleven ways that happen, and holds alerts, screens and runbook to what they promise. For
// each fault: all is green; something breaks; a Prometheus with the shipped rules fires the right alert within 30 seconds; the
// commands that the runbook says to look at name the cause; what the runbook says to do is done; and all is green again, while two
// subscribers have seen every event once and in order.
//
// The commands are read from docs/runbook.md: what is not written there is not done.
//
//	make gameday
//	make gameday ARGS="-run /worker-dead"
//
// `go test` without -all breaks what takes seconds only. It is a test and has no code of its own besides.
package gameday
