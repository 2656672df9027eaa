package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/internal/testkit"
	"github.com/commitcast/commitcast/outbox"
)

const (
	tunnel = "harbor-tunnel"
	tide   = "spring-tide"
)

// quoteOf is the price of a side, as it stands in the database.
func quoteOf(t *testing.T, x *exchange, market string, side lmsr.Side) (price, version int64) {
	t.Helper()
	if err := x.pool.QueryRow(t.Context(), `SELECT price, version FROM demo.market WHERE id = $1`, market).Scan(&price, &version); err != nil {
		t.Fatal(err)
	}
	if side == lmsr.No {
		price = lmsr.Unit - price
	}
	return price, version
}

func TestTradeIsOneTransaction(t *testing.T) {
	d := newDemo(t, 0)
	trader := newTrader(t, d.pool, "ada")
	seen, version := quoteOf(t, d.x, tunnel, lmsr.Yes)
	fill, err := d.x.Trade(t.Context(), Order{
		Market: tunnel, Trader: trader, Side: lmsr.Yes, Amount: 25 * lmsr.Unit, Seen: seen,
	})
	if err != nil {
		t.Fatal(err)
	}
	if fill.Version != version+1 || fill.Shares <= 0 || fill.Cost <= 24*lmsr.Unit || fill.Cost > 25*lmsr.Unit || fill.After <= seen {
		t.Errorf("fill %+v after a price of %d", fill, seen)
	}
	var topic, typ string
	var data []byte
	if err := d.pool.QueryRow(t.Context(), `SELECT topic, type, data FROM commitcast.outbox`).Scan(&topic, &typ, &data); err != nil {
		t.Fatalf("the event: %v", err)
	}
	var event Trade
	if err := json.Unmarshal(data, &event); err != nil {
		t.Fatal(err)
	}
	want := Trade{
		Version: fill.Version, Price: fill.After, Trader: trader, Name: "ada", Side: "yes", Shares: fill.Shares, Cost: fill.Cost,
		Yes: event.Yes, No: event.No,
	}
	if topic != "market:"+tunnel || typ != "trade" || event != want {
		t.Errorf("event %s %s %+v, want %+v", topic, typ, event, want)
	}
	checkConserved(t, d.pool)
}

func TestOrderPastItsToleranceIsRefusedWithAFreshQuote(t *testing.T) {
	d := newDemo(t, 0)
	ada, bob := newTrader(t, d.pool, "ada"), newTrader(t, d.pool, "bob")
	seen, _ := quoteOf(t, d.x, tunnel, lmsr.Yes)
	move := func(side lmsr.Side) {
		t.Helper()
		if _, err := d.x.Trade(t.Context(), Order{Market: tunnel, Trader: bob, Side: side, Amount: 100 * lmsr.Unit, Seen: 1, Tolerance: lmsr.Unit}); err != nil {
			t.Fatal(err)
		}
	}
	move(lmsr.Yes)
	now, newer := quoteOf(t, d.x, tunnel, lmsr.Yes)
	order := Order{Market: tunnel, Trader: ada, Side: lmsr.Yes, Amount: 25 * lmsr.Unit, Seen: seen, Tolerance: now - seen - 1}

	_, err := d.x.Trade(t.Context(), order)
	var stale *StalePriceError
	var wrapped *outbox.StaleError
	if !errors.As(err, &stale) || !errors.As(err, &wrapped) {
		t.Fatalf("an order past its tolerance: %v", err)
	}
	if stale.Quote.Now != now || stale.Quote.Version != newer || stale.Quote.Price != now || stale.Quote.Shares <= 0 {
		t.Errorf("quote %+v, want price %d at version %d", stale.Quote, now, newer)
	}
	if wrapped.Topic != "market:"+tunnel || wrapped.Observed != seen || wrapped.Current != now {
		t.Errorf("stale error %+v", wrapped)
	}
	if _, v := quoteOf(t, d.x, tunnel, lmsr.Yes); v != newer {
		t.Error("a refused order moved the market")
	}
	order.Tolerance++ // to the last millionth
	if _, err := d.x.Trade(t.Context(), order); err != nil {
		t.Errorf("an order at its tolerance: %v", err)
	}

	// A price that moved in the author's favour is no reason to refuse.
	seen, _ = quoteOf(t, d.x, tunnel, lmsr.Yes)
	move(lmsr.No)
	if _, err := d.x.Trade(t.Context(), Order{Market: tunnel, Trader: ada, Side: lmsr.Yes, Amount: lmsr.Unit, Seen: seen}); err != nil {
		t.Errorf("buying cheaper than seen: %v", err)
	}
	// Selling is the mirror image.
	seen, _ = quoteOf(t, d.x, tunnel, lmsr.Yes)
	move(lmsr.No)
	_, err = d.x.Trade(t.Context(), Order{Market: tunnel, Trader: ada, Side: lmsr.Yes, Sell: true, Amount: lmsr.Unit, Seen: seen, Tolerance: 1000})
	if !errors.As(err, &stale) {
		t.Errorf("selling for less than seen: %v", err)
	}
	checkConserved(t, d.pool)
}

func TestOrdersBeyondMeansAreRefused(t *testing.T) {
	d := newDemo(t, 0)
	ada := newTrader(t, d.pool, "ada")
	order := func(o Order) error {
		o.Trader, o.Seen, o.Tolerance = max(o.Trader, ada), lmsr.Unit/2, lmsr.Unit
		if o.Market == "" {
			o.Market = tunnel
		}
		_, err := d.x.Trade(t.Context(), o)
		return err
	}
	if err := order(Order{Side: lmsr.No, Amount: 10 * lmsr.Unit}); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		o    Order
		want error
	}{
		"more money than there is":   {Order{Side: lmsr.Yes, Amount: personDeposit + 1}, errNoMoney},
		"shares that are not there":  {Order{Side: lmsr.Yes, Sell: true, Amount: 1}, errNoShares},
		"more shares than there are": {Order{Side: lmsr.No, Sell: true, Amount: 100 * lmsr.Unit}, errNoShares},
		"past the maker's limit":     {Order{Side: lmsr.Yes, Amount: 900_000 * lmsr.Unit}, lmsr.ErrPriceLimit},
		"nothing":                    {Order{Side: lmsr.Yes, Amount: 0}, lmsr.ErrAmount},
		"less than nothing":          {Order{Side: lmsr.Yes, Amount: -5}, lmsr.ErrAmount},
		"less than nothing, selling": {Order{Side: lmsr.No, Sell: true, Amount: -5}, lmsr.ErrAmount},
		"more than a trade may be":   {Order{Side: lmsr.Yes, Amount: lmsr.MaxAmount + 1}, lmsr.ErrAmount},
		"in a market that is not":    {Order{Side: lmsr.Yes, Amount: 1, Market: "no-such"}, errUnknownMarket},
		"by a trader who is not":     {Order{Side: lmsr.Yes, Amount: 1, Trader: 1 << 40}, errUnknownTrader},
		"a sale past the limit":      {Order{Side: lmsr.Yes, Sell: true, Amount: lmsr.MaxAmount}, lmsr.ErrPriceLimit},
	} {
		if err := order(c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if _, v := quoteOf(t, d.x, tunnel, lmsr.Yes); v != 1 {
		t.Errorf("refused orders made trades: version %d", v)
	}
	checkConserved(t, d.pool)
}

// TestConcurrentTraders lets many trade in two markets at once, each on what it saw last. The tables then tell whether
// anyone traded at a price that was gone, past the tolerance, or with money that was not there.
func TestConcurrentTraders(t *testing.T) {
	d := newDemo(t, 0)
	const traders, orders = 10, 40
	var made, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range traders {
		id := newTrader(t, d.pool, fmt.Sprint("trader ", i))
		r := rand.New(rand.NewPCG(11, uint64(i)))
		wg.Go(func() {
			seen := map[string]int64{tunnel: 614_000, tide: 372_000} // of yes, as the markets opened
			for range orders {
				market := []string{tunnel, tide}[r.IntN(2)]
				o := Order{Market: market, Trader: id, Side: lmsr.Side(1 + r.IntN(2)), Sell: r.IntN(3) == 0, Tolerance: r.Int64N(4000)}
				o.Amount, o.Seen = (1+r.Int64N(20))*lmsr.Unit, seen[market]
				if o.Side == lmsr.No {
					o.Seen = lmsr.Unit - o.Seen
				}
				fill, err := d.x.Trade(t.Context(), o)
				var stale *StalePriceError
				switch {
				case err == nil:
					made.Add(1)
					seen[market] = fill.After
					if o.Side == lmsr.No {
						seen[market] = lmsr.Unit - fill.After
					}
				case errors.As(err, &stale):
					refused.Add(1)
					seen[market] = stale.Quote.Price
				case errors.Is(err, errNoShares):
				default:
					t.Errorf("trade: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if made.Load() < traders*orders/8 || refused.Load() < 5 {
		t.Errorf("%d trades and %d refusals: too few of either to show anything", made.Load(), refused.Load())
	}
	checkConserved(t, d.pool)
}

func TestReopeningKeepsTheMarkets(t *testing.T) {
	d := newDemo(t, 3)
	ada := newTrader(t, d.pool, "ada")
	if _, err := d.x.Trade(t.Context(), Order{Market: tunnel, Trader: ada, Side: lmsr.Yes, Amount: lmsr.Unit, Seen: 1, Tolerance: lmsr.Unit}); err != nil {
		t.Fatal(err)
	}
	x, err := openExchange(t.Context(), d.pool)
	if err != nil {
		t.Fatal(err)
	}
	again, err := newFleet(t.Context(), x, 3, 0, 7, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if again.bots[2].id != d.fleet.bots[2].id {
		t.Error("the bots of the same name are others")
	}
	if _, v := quoteOf(t, x, tunnel, lmsr.Yes); v != 1 {
		t.Errorf("version %d after reopening, want 1", v)
	}
	if err := x.Prune(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFleetTrades runs the bots: they trade at about the rate asked for, some of them too late, and stop when told.
func TestFleetTrades(t *testing.T) {
	d := newDemo(t, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // owned by this test, which waits for done
		defer close(done)
		_ = d.fleet.Run(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	d.fleet.SetRate(maxRate)
	testkit.Eventually(t, time.Minute, func() bool { return d.fleet.trades.Load() >= 300 && d.fleet.refused.Load() > 0 },
		"300 trades and a refusal")
	d.fleet.SetRate(0)
	var last int64
	var since time.Time
	testkit.Eventually(t, 10*time.Second, func() bool {
		now := d.fleet.trades.Load() + d.fleet.refused.Load()
		if now != last || since.IsZero() {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond // at maxRate, a hundred trades
	}, "the bots stop")
	if failed := d.fleet.failed.Load(); failed != 0 {
		t.Errorf("%d orders failed", failed)
	}
	checkConserved(t, d.pool)
	var swing int64
	if err := d.pool.QueryRow(t.Context(), `SELECT max(after) - min(after) FROM demo.trade WHERE side = 'yes' AND market = $1`, tunnel).Scan(&swing); err != nil || swing == 0 {
		t.Errorf("the price did not move (%v)", err)
	}
}

func TestRateIsClamped(t *testing.T) {
	d := newDemo(t, 1)
	for _, rate := range []float64{-1, 1e300} {
		d.fleet.SetRate(rate)
		if got := d.fleet.Rate(); got < 0 || got > maxRate {
			t.Errorf("SetRate(%v) gives %v", rate, got)
		}
	}
}

func TestBotNamesAreDistinct(t *testing.T) {
	names := make(map[string]int)
	for i := range maxBots {
		if other, taken := names[botName(i)]; taken {
			t.Fatalf("bots %d and %d are both %s", other, i, botName(i))
		}
		names[botName(i)] = i
	}
}
