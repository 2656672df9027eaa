package ops

import (
	"fmt"
	"math"
)

// Load is what a deployment is to carry. What is zero and optional is as in [DefaultLoad].
type Load struct {
	Events      float64 `json:"events"`      // a second, in all topics together
	Topics      float64 `json:"topics"`      // with events or subscribers
	Subscribers float64 `json:"subscribers"` // clients connected at once

	Subscriptions float64 `json:"subscriptions"` // of each client
	Hot           float64 `json:"hot"`           // how many subscribers an event has. Default: subscriptions spread evenly over topics
	Bytes         float64 `json:"bytes"`         // of an event's data
	Kept          float64 `json:"kept"`          // events that a topic has ever had, which Redis and broadcasters keep in part
	Retention     float64 `json:"retention"`     // of the journal, in hours
	Within        float64 `json:"within"`        // seconds in which the clients of a node that is lost must be back
	Busy          float64 `json:"busy"`          // the share of a core that may be in use, above 0, at most 1
}

// DefaultLoad has what a Load does not say.
var DefaultLoad = Load{Subscriptions: 1, Bytes: 200, Kept: keptInRedis, Retention: 24, Within: 30, Busy: 0.5}

// Constant is a number that the model multiplies with, and where it is from.
type Constant struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Source string  `json:"source"`
}

// The machine of all constants that are not said to be estimates: 2 cores of a virtual machine (linux/amd64, Go 1.26, Postgres 15, Redis 7.0), everything on
// it. Another one's are found with the command that Source names.
const (
	drainRounds = iota // fixed cost of sequencing and reading, by rounds
	drainEvent         // and by event
	drainSweep         // of one worker that has work
	appendEvent        // more than a plain INSERT
	workerSelf         // the worker's process
	workerRound
	workerEvent
	redisSelf
	redisRound
	redisEvent
	redisListener
	redisSent
	redisStored
	nodeCPU
	heardCPU
	deliveryCPU
	clientMemory
	subscriptionMemory
	nodeMemory
	logEvent
	journalEvent
	frameEvent
	returnCPU
	heads
	constants
)

// Constants of the model.
var Constants = [constants]Constant{
	drainRounds:        {"Postgres, a round of a worker's drains", 2_000, "µs", fitted},
	drainEvent:         {"Postgres, each event of a round", 45, "µs", "docs/adr/0025: sequencing one event, and ten"},
	drainSweep:         {"Postgres, sweeps and River of a worker that has work", 48_000, "µs a second", fitted},
	appendEvent:        {"Postgres, append beyond a plain INSERT", 25, "µs", "docs/adr/0025: append against a plain INSERT"},
	workerSelf:         {"worker, itself, while it has work", 80_000, "µs a second", fitted},
	workerRound:        {"worker, a round", 250, "µs", fitted},
	workerEvent:        {"worker, each event of a round", 20, "µs", "an estimate, from make bench HOPS=backlog"},
	redisSelf:          {"Redis, itself, with workers and broadcasters connected", 2_500, "µs a second", fitted},
	redisRound:         {"Redis, a round", 200, "µs", fitted},
	redisEvent:         {"Redis, each event of a round", 30, "µs", "docs/adr/0025: at 1,000 events/s, two broadcasters"},
	redisListener:      {"Redis, each further broadcaster that wants the event", 5, "µs", "an estimate: a write to a socket"},
	redisSent:          {"Redis, an event that it is sent or sends beside its data", 350, "bytes", fitted},
	redisStored:        {"Redis, an event that it keeps beside its data", 180, "bytes", fitted},
	nodeCPU:            {"broadcaster, itself", 2_000, "µs a second", fitted},
	heardCPU:           {"broadcaster, an event that it is sent", 130, "µs", fitted},
	deliveryCPU:        {"broadcaster, a delivery that is not coalesced", 12, "µs", fitted + "; CURVES=1 HOPS=broadcasters: 13.5 with its share of all else"},
	clientMemory:       {"broadcaster, a client with a subscription", 20 * 1024, "bytes", "make bench HOPS=idle"},
	subscriptionMemory: {"broadcaster, each further subscription", 1024, "bytes", "an estimate"},
	nodeMemory:         {"broadcaster, itself", 31 << 20, "bytes", fitted},
	logEvent:           {"broadcaster, an event in the log of its topic beside its data", 250, "bytes", fitted},
	journalEvent:       {"Postgres, an event in the journal beside its data", 200, "bytes", "make bench CURVES=1 HOPS=journal"},
	frameEvent:         {"network, an event on a socket beside its data", 215, "bytes", fitted + ", without headers of TCP"},
	returnCPU:          {"broadcaster, a client that comes back and catches up", 540, "µs", "make bench HOPS=storm: 5,000 clients, 500 events each"},
	heads:              {"Postgres, a broadcaster's looks at the heads", 10_000, "µs a second", "an estimate: 12 statements a second each, as while Redis is away"},
}

// fitted says that a number makes the model what whole deployments were measured to be.
const fitted = "fitted to make bench HOPS=capacity"

func c(name int) float64 { return Constants[name].Value }

// Limits of the model: beyond, it knows of nothing that was measured.
const (
	// oneWorker is what one worker sequences and publishes from a backlog, in events a second (make bench HOPS=backlog).
	oneWorker = 27_000
	// oneDatabase is where sequencing is taken to end with one Postgres, however many workers: partitions share its WAL.
	oneDatabase = 100_000
	// oneRedis is the share of Redis's one thread that may be in use.
	oneRedis = 0.7
	// roundsEach is how many rounds a second a worker's drains make at most, fitted, too: what comes faster makes rounds larger. On a machine without
	// a core to spare they are fewer, and an event is cheaper.
	roundsEach = 90
	// clientsEach is how many clients a broadcaster is given: no more were measured on one.
	clientsEach = 8_000
	// keptInRedis and keptInLog are how many events of a topic they hold at most, keptBytes how many bytes a log does, and keptLogs all logs of
	// a broadcaster, by default.
	keptInRedis, keptInLog, keptBytes, keptLogs = 10_000, 1_024, 1 << 20, 256 << 20
	// cores is of a broadcaster, of 2 like the machine that was measured: more are used, but were not measured.
	cores = 2
)

// Part is one part of a deployment.
type Part struct {
	Name   string  `json:"name"`
	Count  int     `json:"count"`
	Cores  float64 `json:"cores"`           // of all of them together, in use
	Memory float64 `json:"bytes,omitempty"` // of each
	Why    string  `json:"why"`             // what decides
}

// Capacity is what a load takes.
type Capacity struct {
	Load       Load    `json:"load"`
	Deliveries float64 `json:"deliveries"` // a second
	Network    float64 `json:"network"`    // bytes a second to clients

	RedisNetwork float64 `json:"redis_network"` // bytes a second into Redis and out of it

	Journal float64  `json:"journal"` // bytes that the journal holds
	Parts   []Part   `json:"parts"`
	Beyond  []string `json:"beyond,omitempty"` // what of the load is past what the model knows, and what to do
}

// withDefaults checks a load. An error says what is wrong with it.
func (l Load) withDefaults() (Load, error) {
	for _, d := range []struct {
		to    *float64
		value float64
	}{{&l.Subscriptions, DefaultLoad.Subscriptions}, {&l.Bytes, DefaultLoad.Bytes}, {&l.Kept, DefaultLoad.Kept}, {&l.Retention, DefaultLoad.Retention},
		{&l.Within, DefaultLoad.Within}, {&l.Busy, DefaultLoad.Busy}} {
		if *d.to == 0 {
			*d.to = d.value
		}
	}
	for name, v := range map[string]float64{"events": l.Events, "topics": l.Topics, "subscribers": l.Subscribers, "subscriptions": l.Subscriptions, "hot": l.Hot, "bytes": l.Bytes,
		"retention": l.Retention, "kept": l.Kept, "within": l.Within, "busy": l.Busy} {
		if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 || v > 1e12 {
			return l, fmt.Errorf("%w: %s is %v; it is a number from 0 to 1e12", ErrInvalid, name, v)
		}
	}
	switch {
	case l.Topics < 1:
		return l, fmt.Errorf("%w: there is at least one topic", ErrInvalid)
	case l.Busy > 1:
		return l, fmt.Errorf("%w: at most a whole core can be busy, and busy is %v", ErrInvalid, l.Busy)
	case l.Bytes > 256<<10:
		return l, fmt.Errorf("%w: an event has at most 262144 bytes of data", ErrInvalid)
	case l.Hot > l.Subscribers:
		return l, fmt.Errorf("%w: an event has %v subscribers of %v", ErrInvalid, l.Hot, l.Subscribers)
	case l.Subscriptions > l.Topics:
		return l, fmt.Errorf("%w: a client has %v subscriptions, and there are %v topics", ErrInvalid, l.Subscriptions, l.Topics)
	}
	if l.Hot == 0 {
		l.Hot = l.Subscribers * l.Subscriptions / l.Topics
	}
	return l, nil
}

// CapacityFor says what a load takes, by [Constants]. An error wraps ErrInvalid.
func CapacityFor(l Load) (*Capacity, error) {
	l, err := l.withDefaults()
	if err != nil {
		return nil, err
	}
	out := &Capacity{Load: l, Deliveries: l.Events * l.Hot}
	out.Network = out.Deliveries * (l.Bytes + c(frameEvent))
	out.Journal = l.Events * l.Retention * 3600 * (l.Bytes + c(journalEvent))
	usable := l.Busy * cores

	// Broadcasters: their deliveries, their memory, and that the clients of one that is lost come back to the others in time.
	deliver := out.Deliveries * c(deliveryCPU) / 1e6 // what more nodes share; of the rest each has its own
	nodes, why := 1, "one is enough"
	for _, need := range []struct {
		nodes float64
		why   string
	}{
		{deliver / usable, fmt.Sprintf("deliveries: %.2f cores of which %.0f%% may be busy", deliver, 100*l.Busy)},
		{l.Subscribers / clientsEach, "8,000 clients each: no more were measured on one"},
	} {
		if n := int(math.Ceil(need.nodes)); n > nodes {
			nodes, why = n, need.why
		}
	}
	if l.Subscribers > 0 && nodes == 1 {
		nodes, why = 2, "one may be lost"
	}
	for back := 0.0; l.Subscribers > 0; nodes++ {
		back = l.Subscribers / float64(nodes) * c(returnCPU) / 1e6 / (float64(nodes-1) * cores) // with all that others have left
		if back <= l.Within || nodes > 1_000_000 {
			break
		}
		why = fmt.Sprintf("the clients of one that is lost are back within %.0f s", l.Within)
	}
	clients := l.Subscribers / float64(nodes)
	followed := min(l.Topics, clients*l.Subscriptions) // by the clients of one node
	logs := min(keptLogs, followed*min(keptBytes, min(l.Kept, keptInLog)*(l.Bytes+c(logEvent))))
	memory := c(nodeMemory) + logs + clients*(c(clientMemory)+(l.Subscriptions-1)*c(subscriptionMemory))
	listeners := min(float64(nodes), l.Hot) // broadcasters that an event is sent to
	out.Parts = append(out.Parts, Part{"broadcaster", nodes, deliver + (float64(nodes)*c(nodeCPU)+l.Events*listeners*c(heardCPU))/1e6, memory, why})

	// Workers: one does the work and another may be lost; more, if one is not enough.
	workers, why := 2, "one may be lost"
	if n := int(math.Ceil(l.Events/(oneWorker*l.Busy))) + 1; n > workers {
		workers, why = n, fmt.Sprintf("%d events/s from a backlog each, of which %.0f%%; and one may be lost", oneWorker, 100*l.Busy)
	}
	rounds := min(l.Events, float64(workers*roundsEach))
	out.Parts = append(out.Parts, Part{"worker", workers, (float64(workers)*c(workerSelf) + rounds*c(workerRound) + l.Events*c(workerEvent)) / 1e6, 64 << 20, why})

	// Postgres: besides what the service's own statements take.
	database := (rounds*c(drainRounds) + l.Events*(c(drainEvent)+c(appendEvent)) + float64(workers)*c(drainSweep) + float64(nodes)*c(heads)) / 1e6
	out.Parts = append(out.Parts, Part{"Postgres", 1, database, 0, "besides the service's own work; cores with what is synchronous to disk apart"})

	// Redis: each event once, and to each broadcaster with a subscriber of it.
	redis := (c(redisSelf) + rounds*c(redisRound) + l.Events*(c(redisEvent)+max(0, listeners-1)*c(redisListener))) / 1e6
	out.RedisNetwork = l.Events * (1 + listeners) * (l.Bytes + c(redisSent))
	shards := max(1, int(math.Ceil(redis/oneRedis)))
	why = "one thread is enough"
	if shards > 1 {
		why = fmt.Sprintf("masters of a cluster: %.2f cores, of one thread %.0f%% each", redis, 100*oneRedis)
	}
	out.Parts = append(out.Parts, Part{"Redis", shards, redis, l.Topics * min(l.Kept, keptInRedis) * (l.Bytes + c(redisStored)) / float64(shards), why})

	if l.Events > oneDatabase {
		out.Beyond = append(out.Beyond, fmt.Sprintf("%.0f events/s are more than one Postgres is known to number (%d): spread topics over several (--shard, docs/deploying.md)", l.Events, oneDatabase))
	}
	if shards > 32 {
		out.Beyond = append(out.Beyond, "a cluster has at most 32 masters with work, one for each partition")
	}
	if nodes > 1000 {
		out.Beyond = append(out.Beyond, fmt.Sprintf("%d broadcasters look at the heads of one Postgres, %.0f times a second: a tier between is needed", nodes, 12*float64(nodes)))
	}
	return out, nil
}
