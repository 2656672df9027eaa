package main

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/commitcast/commitcast/outbox"
)

var (
	//go:embed sql/markets.sql
	marketsSQL string
	//go:embed sql/history.sql
	historySQL string
	//go:embed sql/tape.sql
	tapeSQL string
)

// tapeLength is how many past trades of each market a snapshot brings.
const tapeLength = 30

// Market is a market as a snapshot shows it.
type Market struct {
	ID        string  `json:"id"`
	Title     string  `json:"title,omitempty"` // the question in a few words
	Question  string  `json:"question,omitempty"`
	Category  string  `json:"category,omitempty"`
	Rules     string  `json:"rules,omitempty"`
	Liquidity int64   `json:"liquidity"`
	Yes       int64   `json:"yes"`
	No        int64   `json:"no"`
	Price     int64   `json:"price"` // of yes
	Version   int64   `json:"version"`
	Volume    int64   `json:"volume"`
	OpenedAt  int64   `json:"opened_at"` // milliseconds since 1970
	Mine      Holding `json:"mine"`

	// What a chart and a tape begin with; nil where they were not asked for.
	History [][2]int64  `json:"history,omitzero"` // second since 1970, price at its end
	Tape    []PastTrade `json:"tape,omitzero"`    // oldest first
}

// Holding is what a trader holds in a market, and what it has cost.
type Holding struct {
	Yes   int64 `json:"yes"`
	No    int64 `json:"no"`
	Spent int64 `json:"spent"`
}

// PastTrade is a trade as the tape shows it.
type PastTrade struct {
	Version int64  `json:"version"`
	Trader  int64  `json:"trader"`
	Name    string `json:"name"`
	Bot     bool   `json:"bot,omitempty"`
	Side    string `json:"side"`
	Shares  int64  `json:"shares"`
	Cost    int64  `json:"cost"`
	After   int64  `json:"after"` // price of the side
	At      int64  `json:"at"`    // milliseconds since 1970
}

// Figures is what the tables hold of markets and a trader at one instant, and where each topic stands then.
type Figures struct {
	Positions []outbox.Position `json:"positions"`
	Markets   []Market          `json:"markets"`
	Balance   *int64            `json:"balance,omitempty"` // of the trader; absent for nobody
}

// marketIDs is every market, in the order in which they are shown.
func marketIDs() []string {
	ids := make([]string, len(seedMarkets))
	for i, m := range seedMarkets {
		ids[i] = m.id
	}
	return ids
}

// Figures reads all markets and one trader (0: nobody), without words and past: all of it is one instant, and fits the
// cursors.
func (x *exchange) Figures(ctx context.Context, trader int64) (f Figures, err error) {
	ids := marketIDs()
	topics := make([]string, len(ids))
	for i, id := range ids {
		topics[i] = topicOf(id)
	}
	f.Positions, err = outbox.Snapshot(ctx, x.pool, topics, func(tx pgx.Tx) (err error) {
		f.Markets, err = readMarkets(ctx, tx, ids, trader, false)
		if err != nil || trader == 0 {
			return err
		}
		return wrapNoRows(tx.QueryRow(ctx, `SELECT balance FROM demo.trader WHERE id = $1`, trader).Scan(&f.Balance), nil)
	})
	for i := range f.Markets {
		m := &f.Markets[i]
		m.Title, m.Question, m.Category, m.Rules = "", "", "", ""
	}
	if err != nil {
		return f, fmt.Errorf("reading the markets: %w", err)
	}
	return f, nil
}

// readMarkets reads markets and what one trader (0: nobody) holds in them; with past, history and tape, too.
func readMarkets(ctx context.Context, tx pgx.Tx, ids []string, trader int64, past bool) (markets []Market, err error) {
	var batch pgx.Batch
	at := make(map[string]int, len(ids)) // market to place in markets
	batch.Queue(marketsSQL, ids, trader).Query(func(rows pgx.Rows) error {
		var m Market
		var opened time.Time
		_, err := pgx.ForEachRow(rows, []any{
			&m.ID, &m.Title, &m.Question, &m.Category, &m.Rules, &m.Liquidity, &m.Yes, &m.No, &m.Price, &m.Version, &m.Volume,
			&opened, &m.Mine.Yes, &m.Mine.No, &m.Mine.Spent,
		}, func() error {
			m.OpenedAt = opened.UnixMilli()
			at[m.ID] = len(markets)
			if past {
				m.History, m.Tape = [][2]int64{}, []PastTrade{}
			}
			markets = append(markets, m)
			return nil
		})
		return err
	})
	if past {
		batch.Queue(historySQL, ids).Query(func(rows pgx.Rows) error {
			var id string
			var point [2]int64
			_, err := pgx.ForEachRow(rows, []any{&id, &point[0], &point[1]}, func() error {
				m := &markets[at[id]]
				m.History = append(m.History, point)
				return nil
			})
			return err
		})
		batch.Queue(tapeSQL, ids, tapeLength).Query(func(rows pgx.Rows) error {
			var id string
			var t PastTrade
			var when time.Time
			_, err := pgx.ForEachRow(rows, []any{
				&id, &t.Version, &t.Trader, &t.Name, &t.Bot, &t.Side, &t.Shares, &t.Cost, &t.After, &when,
			}, func() error {
				t.At = when.UnixMilli()
				m := &markets[at[id]]
				m.Tape = append(m.Tape, t)
				return nil
			})
			return err
		})
	}
	return markets, tx.SendBatch(ctx, &batch).Close()
}

// Prune drops chart points that no chart shows any more.
func (x *exchange) Prune(ctx context.Context) error {
	_, err := x.pool.Exec(ctx, `DELETE FROM demo.tick WHERE second < extract(epoch FROM clock_timestamp())::bigint - 3600`)
	return err
}
