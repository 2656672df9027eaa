package gameday

import (
	"strings"
)

// faults are the ten, in the order of docs/operations.md.
var faults = []fault{
	{
		name: "worker-dead", quick: true,
		alert: "CommitcastNoWorker",
		breaks: func(s *system) {
			s.worker.Cmd.Process.Kill()
			<-s.worker.Done
		},
		shows:  []look{{"commitcast ops status", []string{"no worker was found", "do       start one: commitcast worker"}}},
		screen: "no worker was found",
		cure: func(s *system, book section) {
			s.runs(book.command("commitcast worker"))
		},
	},
}

// runs starts what the runbook says to start: it is the worker, with its own flags and environment.
func (s *system) runs(command string) {
	s.t.Helper()
	if strings.TrimPrefix(command, "commitcast ") != "worker" {
		s.t.Fatalf("%q does not start a worker", command)
	}
	s.startWorker()
}
