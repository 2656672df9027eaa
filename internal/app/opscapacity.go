package app

import (
	"fmt"
	"strconv"

	"github.com/alecthomas/kong"

	"github.com/commitcast/commitcast/ops"
)

// opsCapacity is about a deployment that need not exist.
type opsCapacity struct {
	Events        float64 `required:"" help:"Events a second, in all topics together."`
	Topics        float64 `required:"" help:"Topics."`
	Subscribers   float64 `required:"" help:"Clients connected at once."`
	Subscriptions float64 `default:"${capacity_subscriptions}" help:"Topics that each client follows (${default})."`
	Hot           float64 `placeholder:"N" help:"Subscribers that an event has (subscriptions spread evenly over topics)."`
	Bytes         float64 `default:"${capacity_bytes}" help:"Bytes of an event's data (${default})."`
	Kept          float64 `default:"${capacity_kept}" placeholder:"N" help:"Events that a topic has ever had, which Redis and broadcasters keep in part (${default}, which is all that they keep)."`
	Retention     float64 `default:"${capacity_retention}" placeholder:"HOURS" help:"Hours that the journal keeps (${default})."`
	Within        float64 `default:"${capacity_within}" placeholder:"SECONDS" help:"Seconds in which the clients of a broadcaster that is lost must be back (${default})."`
	Busy          float64 `default:"${capacity_busy}" placeholder:"SHARE" help:"Share of a core that may be in use (${default})."`
	JSON          bool    `name:"json" help:"JSON instead of tables."`
}

// capacityDefaults takes them from package ops.
func capacityDefaults() kong.Vars {
	text := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	d := ops.DefaultLoad
	return kong.Vars{"capacity_subscriptions": text(d.Subscriptions), "capacity_bytes": text(d.Bytes), "capacity_kept": text(d.Kept),
		"capacity_retention": text(d.Retention), "capacity_within": text(d.Within), "capacity_busy": text(d.Busy)}
}

func (c *opsCapacity) Run(s *streams) error {
	got, err := ops.CapacityFor(ops.Load{Events: c.Events, Topics: c.Topics, Subscribers: c.Subscribers, Subscriptions: c.Subscriptions, Hot: c.Hot, Bytes: c.Bytes, Kept: c.Kept,
		Retention: c.Retention, Within: c.Within, Busy: c.Busy})
	if err != nil {
		return usageError{err}
	}
	says := struct {
		*ops.Capacity
		Constants []ops.Constant `json:"constants"`
	}{got, ops.Constants[:]}
	return show(s, c.JSON, says, func(p *page) {
		p.line("%s deliveries, %s/s to clients, %s/s in and out of Redis, a journal of %s", rate(got.Deliveries), ops.Bytes(int64(got.Network)), ops.Bytes(int64(got.RedisNetwork)),
			ops.Bytes(int64(got.Journal)))
		p.line("")
		t := newTable("PART", ">HOW MANY", ">CORES IN USE", ">MEMORY EACH", "WHAT DECIDES")
		for _, part := range got.Parts {
			memory := ""
			if part.Memory > 0 {
				memory = ops.Bytes(int64(part.Memory))
			}
			t.add(part.Name, part.Count, strconv.FormatFloat(part.Cores, 'f', 2, 64), memory, part.Why)
		}
		p.print(t)
		for _, b := range got.Beyond {
			p.line("%s", p.paint(yellow, "beyond what is known: "+b))
		}
		p.line("\nMultiplied with, as measured on 2 cores with everything on them; measure your own before you rely on it:\n")
		t = newTable("NUMBER", ">VALUE", "UNIT", "FROM")
		for _, k := range ops.Constants {
			value := fmt.Sprint(k.Value)
			if k.Unit == "bytes" {
				value = ops.Bytes(int64(k.Value))
			}
			t.add(k.Name, value, k.Unit, k.Source)
		}
		p.print(t)
	})
}
