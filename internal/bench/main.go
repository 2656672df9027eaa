// Command bench measures every hop of Commitcast beside a limit program for that hop, in one run.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "swarm":
			swarmMain()
			return
		case "fanserver":
			fanserverMain()
			return
		}
	}
	for _, o := range []struct {
		order   fanOrder
		clients int
	}{
		{fanOrder{Kind: kindLimit, Topic: "t", Events: 50, Rate: 5, Bytes: 100}, 4000},
		{fanOrder{Kind: kindCommitcast, Topic: "t", Events: 50, Rate: 5, Bytes: 100}, 4000},
		{fanOrder{Kind: kindQueues, Topic: "t", Events: 1000, Window: 256, Bytes: 100}, 1000},
		{fanOrder{Kind: kindLimit, Topic: "t", Events: 1000, Window: 256, Bytes: 100}, 1000},
		{fanOrder{Kind: kindCommitcast, Topic: "t", Events: 5000, Window: 256, Bytes: 100}, 1000},
	} {
		r, err := fanout(o.order, o.clients, 0)
		if err != nil {
			fatal(err)
		}
		fmt.Printf("%-10s %5d clients rate %5.0f: %9.0f deliveries/s p50 %6.2f ms p99 %6.2f ms, %5.2f CPU s/M, %7d messages, RSS %d KB\n",
			r.Kind, r.Clients, r.Rate, r.PerSecond, r.P50, r.P99, r.CPUPerMillion, r.Messages, r.RSS>>10)
	}
}
