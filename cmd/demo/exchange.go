package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/outbox"
)

var (
	//go:embed sql/schema.sql
	schemaSQL string
	//go:embed sql/lock_market.sql
	lockMarketSQL string
	//go:embed sql/lock_trader.sql
	lockTraderSQL string
	//go:embed sql/read_position.sql
	readPositionSQL string
	//go:embed sql/record_trade.sql
	recordTradeSQL string
)

// Why an order is refused. A price that moved is a [*StalePriceError] instead.
var (
	errUnknownMarket = errors.New("there is no such market")
	errUnknownTrader = errors.New("there is no such trader")
	errNoMoney       = errors.New("the balance is too small")
	errNoShares      = errors.New("the position is too small")
)

// exchange is the business: markets that move when people and bots trade in them. Safe for concurrent use.
type exchange struct {
	pool *pgxpool.Pool
}

// openExchange makes the tables and the markets, unless they are there.
func openExchange(ctx context.Context, pool *pgxpool.Pool) (*exchange, error) {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, schemaSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		for i, m := range seedMarkets {
			k := lmsr.At(m.liquidity*lmsr.Unit, m.price)
			if _, err := tx.Exec(ctx, `
				INSERT INTO demo.market (id, ordinal, title, question, category, rules, liquidity, seed_yes, seed_no, yes, no, price)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $8, $9, $10) ON CONFLICT (id) DO NOTHING`,
				m.id, i, m.title, m.question, m.category, m.rules, k.Liquidity, k.Yes, k.No, k.Price(lmsr.Yes)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("making the demo's tables: %w", err)
	}
	return &exchange{pool: pool}, nil
}

// topicOf is the topic of a market's events.
func topicOf(market string) string { return "market:" + market }

// Order is what a trader asks for.
type Order struct {
	Market string
	Trader int64
	Side   lmsr.Side
	Sell   bool
	// Amount is the money to spend when buying, the shares to give when selling; in millionths.
	Amount int64
	// Seen is the price of the side that the author saw, and Tolerance how far it may have moved against the author.
	Seen, Tolerance int64
	// Cursor is where the market's topic stood when the author looked: a price of another history of the database is no
	// price. Bots, who look at the tables, leave it empty.
	Cursor string
}

// Fill is a trade that was made.
type Fill struct {
	Market  string `json:"market"`
	Version int64  `json:"version"` // which trade of the market: the push of the same trade carries the same number
	Side    string `json:"side"`
	Shares  int64  `json:"shares"` // below zero: sold
	Cost    int64  `json:"cost"`   // below zero: received
	After   int64  `json:"after"`  // the price of the side that the trade left
}

// Trade is the data of an event of type "trade": everything a screen needs to show the market after it.
type Trade struct {
	Version int64  `json:"version"`
	Price   int64  `json:"price"` // of yes, after the trade
	Yes     int64  `json:"yes"`   // shares outstanding, after the trade
	No      int64  `json:"no"`
	Trader  int64  `json:"trader"`
	Name    string `json:"name"`
	Bot     bool   `json:"bot,omitempty"`
	Side    string `json:"side"`
	Shares  int64  `json:"shares"`
	Cost    int64  `json:"cost"`
}

// Quote is what a market offers now, for an order that was refused.
type Quote struct {
	Market  string `json:"market"`
	Version int64  `json:"version"`
	Price   int64  `json:"price"` // of yes
	Side    string `json:"side"`
	Now     int64  `json:"now"`    // the price of the side
	Shares  int64  `json:"shares"` // what the same amount would move now; 0 when it cannot be had
	Cost    int64  `json:"cost"`
}

// StalePriceError refuses an order because the market has moved past what its author allowed. It wraps an
// [*outbox.StaleError], and the problem that the client is told: the fresh quote beside the fresh state.
type StalePriceError struct {
	Order Order
	Quote Quote
	stale error
}

func (e *StalePriceError) Error() string {
	return fmt.Sprintf("%s is at %s now; you saw %s and allowed %s", e.Quote.Side, cents(e.Quote.Now), cents(e.Order.Seen),
		cents(e.Order.Tolerance))
}

func (e *StalePriceError) Unwrap() []error {
	return []error{e.stale, &outbox.Problem{
		Type: problemType + "stale-price", Title: "The market moved", Status: http.StatusConflict, Detail: e.Error(),
		More: map[string]any{"quote": e.Quote},
	}}
}

// cents writes a price as people read it.
func cents(price int64) string { return fmt.Sprintf("%.1f¢", float64(price)/(lmsr.Unit/100)) }

func sideName(s lmsr.Side) string {
	if s == lmsr.Yes {
		return "yes"
	}
	return "no"
}

// Trade carries out an order in a transaction of its own; see trade.
func (x *exchange) Trade(ctx context.Context, o Order) (fill Fill, err error) {
	err = outbox.Tx(ctx, x.pool, func(tx *outbox.Transaction) error {
		fill, err = trade(ctx, tx, o)
		return err
	})
	return fill, err
}

// trade carries out an order, or refuses it: decision, trade and event are one transaction. The decision is made on the
// market row, locked, so two orders never meet the same price.
func trade(ctx context.Context, tx *outbox.Transaction, o Order) (Fill, error) {
	s, err := lock(ctx, tx, o)
	if err != nil {
		return Fill{}, err
	}
	before := s.book.Price(o.Side)
	shares, cost, after, err := price(s.book, o)
	if stale := checkSeen(ctx, tx, o, s, before, shares, cost); stale != nil {
		return Fill{}, stale
	}
	if err != nil {
		return Fill{}, err
	}
	if cost > s.balance {
		return Fill{}, errNoMoney
	}
	held := s.held
	if o.Side == lmsr.Yes {
		held.yes += shares
	} else {
		held.no += shares
	}
	if held.yes < 0 || held.no < 0 {
		return Fill{}, errNoShares
	}
	t := Trade{
		Version: s.version + 1, Price: after.Price(lmsr.Yes), Yes: after.Yes, No: after.No,
		Trader: o.Trader, Name: s.name, Bot: s.bot, Side: sideName(o.Side), Shares: shares, Cost: cost,
	}
	if _, err := tx.Exec(ctx, recordTradeSQL, pgx.NamedArgs{
		"market": o.Market, "version": t.Version, "trader": o.Trader, "side": t.Side,
		"shares": shares, "cost": cost, "price": t.Price, "seen": o.Seen, "tolerance": o.Tolerance,
		"before": before, "after": after.Price(o.Side),
		"held_yes": held.yes, "held_no": held.no, "spent": held.spent + cost,
	}); err != nil {
		return Fill{}, fmt.Errorf("recording a trade: %w", err)
	}
	fill := Fill{Market: o.Market, Version: t.Version, Side: t.Side, Shares: shares, Cost: cost, After: after.Price(o.Side)}
	return fill, tx.Publish(outbox.Event{Topic: topicOf(o.Market), Type: "trade", Key: o.Market, Data: t})
}

// holding is a position in one market.
type holding struct{ yes, no, spent int64 }

// locked is what the decision about an order rests on.
type locked struct {
	book    lmsr.Book
	version int64
	name    string
	bot     bool
	balance int64
	held    holding
}

// lock locks the market and the trader, in this order, and reads what the decision needs, in one round trip.
func lock(ctx context.Context, tx pgx.Tx, o Order) (s locked, err error) {
	var batch pgx.Batch
	batch.Queue(lockMarketSQL, o.Market).QueryRow(func(row pgx.Row) error {
		var price int64
		return wrapNoRows(row.Scan(&s.book.Liquidity, &s.book.Yes, &s.book.No, &price, &s.version), errUnknownMarket)
	})
	batch.Queue(lockTraderSQL, o.Trader).QueryRow(func(row pgx.Row) error {
		return wrapNoRows(row.Scan(&s.name, &s.bot, &s.balance), errUnknownTrader)
	})
	batch.Queue(readPositionSQL, o.Trader, o.Market).QueryRow(func(row pgx.Row) error {
		return wrapNoRows(row.Scan(&s.held.yes, &s.held.no, &s.held.spent), nil)
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return locked{}, fmt.Errorf("locking market and trader: %w", err)
	}
	return s, nil
}

// wrapNoRows turns "no rows" into another error, or none.
func wrapNoRows(err, instead error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return instead
	}
	return err
}

// price is what an order moves and costs, and the book after it. Selling counts below zero.
func price(k lmsr.Book, o Order) (shares, cost int64, after lmsr.Book, err error) {
	if o.Sell {
		proceeds, after, err := k.Sell(o.Side, o.Amount)
		return -o.Amount, -proceeds, after, err
	}
	if shares, err = k.SharesFor(o.Side, o.Amount); err != nil {
		return 0, 0, k, err
	}
	cost, after, err = k.Buy(o.Side, shares)
	return shares, cost, after, err
}

// checkSeen refuses an order whose author saw a better price than the market's, by more than the tolerance, or saw it
// in another history of the database.
func checkSeen(ctx context.Context, tx pgx.Tx, o Order, s locked, now, shares, cost int64) error {
	acceptable := func(seen, now int64) bool {
		if o.Sell {
			return seen-now <= o.Tolerance
		}
		return now-seen <= o.Tolerance
	}
	topic := topicOf(o.Market)
	var err error
	if o.Cursor == "" {
		err = outbox.CheckFunc(topic, o.Seen, now, acceptable)
	} else {
		err = outbox.Within(ctx, tx, outbox.Guard{Topic: topic, Saw: outbox.Saw{Cursor: o.Cursor}}, o.Seen, now, acceptable)
	}
	var stale *outbox.StaleError
	if !errors.As(err, &stale) {
		return err
	}
	return &StalePriceError{
		Order: o,
		Quote: Quote{
			Market: o.Market, Version: s.version, Price: s.book.Price(lmsr.Yes), Side: sideName(o.Side), Now: now,
			Shares: shares, Cost: cost,
		},
		stale: stale,
	}
}
