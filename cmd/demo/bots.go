package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/cmd/demo/lmsr"
)

// Limits of the fleet.
const (
	// maxBots bounds goroutines and rows; more bots than that look no different.
	maxBots = 200
	// maxRate is the most trades a second the page may ask for: about what a small machine carries with everything
	// else of the demo on it.
	maxRate = 400
	// botDeposit is large beside what a bot trades at a time, so that no bot runs dry while people watch.
	botDeposit = 100_000 * lmsr.Unit
	// boardRefresh is how old a bot's own view of the prices may be before it is read again.
	boardRefresh = 250 * time.Millisecond
	// boardMemory is how many views are kept: the late traders act on an old one.
	boardMemory = 48
	// botPause is how long a bot waits after the database could not be asked.
	botPause = time.Second
)

// fleet is the bots: each is a goroutine with its own random source and temper. They believe in a hidden value of
// each market, which wanders and sometimes jumps, and trade towards it; some trade at random, and some act on prices
// that are seconds old, as people do.
type fleet struct {
	x    *exchange
	log  *slog.Logger
	seed uint64
	bots []*bot

	trades, refused, failed atomic.Int64

	mu      sync.Mutex
	rate    float64       // trades a second, of all bots together
	changed chan struct{} // closed when rate changes
	board   [][]view      // newest last; at most boardMemory
	hidden  []float64     // the hidden value of each market, as log-odds
	warned  time.Time
}

// view is the price of one market as a bot sees it.
type view struct {
	price int64
}

type temper uint8

const (
	informed temper = iota // trades towards the hidden value
	noise                  // trades at random, and goes home when it holds too much
	late                   // acts on a price that is seconds old
)

type bot struct {
	id     int64
	temper temper
	rand   *rand.Rand
	bias   float64 // how wrong it is about every hidden value, as log-odds
	held   []holding
}

// newFleet makes sure that the bots exist and reads what they hold.
func newFleet(ctx context.Context, x *exchange, n int, rate float64, seed uint64, log *slog.Logger) (*fleet, error) {
	f := &fleet{x: x, log: log, seed: seed, rate: clampRate(rate), changed: make(chan struct{})}
	for i := range min(n, maxBots) {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		b := &bot{rand: r, bias: 0.12 * r.NormFloat64(), held: make([]holding, len(seedMarkets))}
		switch {
		case i%8 == 3:
			b.temper = late
		case i%8 >= 5:
			b.temper = noise
		}
		err := x.pool.QueryRow(ctx, `
			INSERT INTO demo.trader (name, bot, deposit, balance) VALUES ($1, true, $2, $2)
			ON CONFLICT (name) WHERE bot DO UPDATE SET name = EXCLUDED.name RETURNING id`,
			botName(i), botDeposit).Scan(&b.id)
		if err != nil {
			return nil, fmt.Errorf("making bot %d: %w", i, err)
		}
		for m := range seedMarkets {
			err := x.pool.QueryRow(ctx, readPositionSQL, b.id, seedMarkets[m].id).Scan(&b.held[m].yes, &b.held[m].no, &b.held[m].spent)
			if wrapNoRows(err, nil) != nil {
				return nil, fmt.Errorf("reading what bot %d holds: %w", i, err)
			}
		}
		f.bots = append(f.bots, b)
	}
	if err := f.look(ctx); err != nil {
		return nil, err
	}
	f.hidden = make([]float64, len(seedMarkets))
	for m, v := range f.board[len(f.board)-1] {
		f.hidden[m] = logOdds(v.price)
	}
	return f, nil
}

var (
	botFirst  = []string{"amber", "brisk", "cedar", "delta", "ember", "fable", "grove", "hazel", "indigo", "juniper", "kestrel", "linden"}
	botSecond = []string{"fox", "owl", "heron", "lynx", "wren", "otter"}
)

func botName(i int) string {
	name := botFirst[i%len(botFirst)] + "-" + botSecond[(i/len(botFirst)+i)%len(botSecond)]
	if round := i / (len(botFirst) * len(botSecond)); round > 0 {
		return fmt.Sprintf("%s-%d", name, round+1)
	}
	return name
}

func clampRate(rate float64) float64 {
	if !(rate > 0) { // NaN, too
		return 0
	}
	return min(rate, maxRate)
}

// SetRate changes how many trades a second the bots make together, from 0 to maxRate.
func (f *fleet) SetRate(rate float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate = clampRate(rate)
	close(f.changed)
	f.changed = make(chan struct{})
}

// Rate is how many trades a second the bots are to make.
func (f *fleet) Rate() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rate
}

// Run trades until ctx ends.
func (f *fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, b := range f.bots {
		wg.Go(func() { f.runBot(ctx, b) }) // owned by Run
	}
	wg.Go(func() { f.runWorld(ctx) }) // owned by Run
	wg.Wait()
	return ctx.Err()
}

// runWorld moves the hidden values and keeps the board fresh.
func (f *fleet) runWorld(ctx context.Context) {
	r := rand.New(rand.NewPCG(f.seed, math.MaxUint64))
	ticker := time.NewTicker(boardRefresh)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := f.look(ctx); err != nil {
			f.warn(ctx, err)
		}
		f.mu.Lock()
		wander(r, f.hidden, boardRefresh.Seconds())
		f.mu.Unlock()
	}
}

// wander moves hidden values by dt seconds: a random walk, pulled home over ten minutes, with a piece of news in each
// market every two minutes or so.
func wander(r *rand.Rand, hidden []float64, dt float64) {
	for m := range hidden {
		home := logOdds(seedMarkets[m].price)
		hidden[m] += (home-hidden[m])/600*dt + 0.028*math.Sqrt(dt)*r.NormFloat64()
		if r.Float64() < dt/120 {
			hidden[m] += 0.4 * r.NormFloat64()
		}
		hidden[m] = max(-2.6, min(2.6, hidden[m]))
	}
}

// look puts the prices on the board.
func (f *fleet) look(ctx context.Context) error {
	rows, err := f.x.pool.Query(ctx, `SELECT id, price FROM demo.market`)
	if err != nil {
		return fmt.Errorf("reading prices: %w", err)
	}
	views := make([]view, len(seedMarkets))
	var id string
	var v view
	if _, err = pgx.ForEachRow(rows, []any{&id, &v.price}, func() error {
		for m := range seedMarkets {
			if seedMarkets[m].id == id {
				views[m] = v
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("reading prices: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.board = append(f.board, views)
	if len(f.board) > boardMemory {
		f.board = f.board[1:]
	}
	return nil
}

// runBot is one bot: waits, decides, trades.
func (f *fleet) runBot(ctx context.Context, b *bot) {
	for f.wait(ctx, b) {
		order, m, ok := f.decide(b)
		if !ok {
			continue
		}
		fill, err := f.x.Trade(ctx, order)
		var stale *StalePriceError
		switch {
		case err == nil:
			f.trades.Add(1)
			b.remember(m, fill)
		case errors.As(err, &stale):
			f.refused.Add(1)
		case errors.Is(err, errNoMoney), errors.Is(err, errNoShares), errors.Is(err, lmsr.ErrPriceLimit), errors.Is(err, lmsr.ErrAmount):
			// The maker's limits and an empty purse are part of the game.
		case ctx.Err() == nil:
			f.failed.Add(1)
			f.warn(ctx, err)
			select {
			case <-ctx.Done():
			case <-time.After(botPause):
			}
		}
	}
}

// wait sleeps until the bot's next trade is due; its pauses are random, so the fleet's trades come as people's do. It
// returns false when ctx has ended.
func (f *fleet) wait(ctx context.Context, b *bot) bool {
	for {
		f.mu.Lock()
		rate, changed := f.rate, f.changed
		f.mu.Unlock()
		var due <-chan time.Time
		if rate > 0 {
			pause := b.rand.ExpFloat64() * float64(len(f.bots)) / rate
			due = time.After(time.Duration(min(pause, 3600) * float64(time.Second)))
		}
		select {
		case <-ctx.Done():
			return false
		case <-due:
			return true
		case <-changed:
		}
	}
}

// decide makes the bot's next order, or none.
func (f *fleet) decide(b *bot) (o Order, m int, ok bool) {
	m = b.rand.IntN(len(seedMarkets))
	f.mu.Lock()
	newest := len(f.board) - 1
	seen, hidden := f.board[newest][m], f.hidden[m]
	if b.temper == late {
		seen = f.board[max(0, newest-8-b.rand.IntN(32))][m]
	}
	f.mu.Unlock()

	b1 := float64(seedMarkets[m].liquidity) * lmsr.Unit
	var shares float64 // above zero: towards yes
	switch b.temper {
	case noise:
		shares = (8 + 70*b.rand.ExpFloat64()) * lmsr.Unit
		net := float64(b.held[m].yes - b.held[m].no)
		if b.rand.Float64() < 0.5+0.5*math.Tanh(net/(400*lmsr.Unit)) {
			shares = -shares
		}
	default:
		gap := hidden + b.bias - logOdds(seen.price) + 0.05*b.rand.NormFloat64()
		shares = gap * b1 * (0.04 + 0.1*b.rand.Float64())
	}
	if size := math.Abs(shares); size < 2*lmsr.Unit {
		return o, m, false
	} else if size > 300*lmsr.Unit {
		shares *= 300 * lmsr.Unit / size
	}

	o = Order{Market: seedMarkets[m].id, Trader: b.id, Side: lmsr.Yes}
	o.Tolerance = 20_000
	if b.temper == late {
		o.Tolerance = 2_000 + b.rand.Int64N(6_000)
	}
	opposite := b.held[m].no
	o.Seen = seen.price
	if shares < 0 {
		shares, o.Side, opposite, o.Seen = -shares, lmsr.No, b.held[m].yes, lmsr.Unit-seen.price
	}
	if opposite > lmsr.Unit {
		// Selling NO moves the price as buying YES does, and frees money.
		o.Side, o.Sell, o.Seen = lmsr.Yes+lmsr.No-o.Side, true, lmsr.Unit-o.Seen
		o.Amount = min(opposite, int64(shares))
		return o, m, true
	}
	o.Amount = max(1, int64(shares*float64(o.Seen)/lmsr.Unit))
	return o, m, true
}

// remember keeps what the bot holds.
func (b *bot) remember(m int, fill Fill) {
	if fill.Side == "yes" {
		b.held[m].yes += fill.Shares
	} else {
		b.held[m].no += fill.Shares
	}
}

// warn logs that the bots cannot trade: at most every five seconds, since all of them meet the same wall.
func (f *fleet) warn(ctx context.Context, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() == nil && time.Since(f.warned) > 5*time.Second {
		f.warned = time.Now()
		f.log.Warn("bots cannot trade now; they try again", "err", err)
	}
}

func logOdds(price int64) float64 {
	p := float64(price) / lmsr.Unit
	return math.Log(p / (1 - p))
}
