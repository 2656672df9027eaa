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

	History [][2]int64  `json:"history,omitempty"` // second since 1970, price at its end
	Tape    []PastTrade `json:"tape,omitempty"`    // oldest first
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

// Snapshot is markets and trader at one instant of the database, and where each topic stands then.
type Snapshot struct {
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

// Read takes a snapshot of markets and of one trader (0: nobody): all of it is one instant, and fits the cursors.
// With past, it brings history and tape.
func (x *exchange) Read(ctx context.Context, ids []string, trader int64, past bool) (*Snapshot, error) {
	topics := make([]string, len(ids))
	for i, id := range ids {
		topics[i] = topicOf(id)
	}
	var s Snapshot
	positions, err := outbox.Snapshot(ctx, x.pool, topics, func(tx pgx.Tx) error {
		s = Snapshot{} // the snapshot may be taken again
		return s.read(ctx, tx, ids, trader, past)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the markets: %w", err)
	}
	s.Positions = positions
	return &s, nil
}

func (s *Snapshot) read(ctx context.Context, tx pgx.Tx, ids []string, trader int64, past bool) error {
	var batch pgx.Batch
	at := make(map[string]int, len(ids)) // market to place in s.Markets
	batch.Queue(marketsSQL, ids, trader).Query(func(rows pgx.Rows) error {
		var m Market
		var opened time.Time
		_, err := pgx.ForEachRow(rows, []any{
			&m.ID, &m.Title, &m.Question, &m.Category, &m.Rules, &m.Liquidity, &m.Yes, &m.No, &m.Price, &m.Version, &m.Volume,
			&opened, &m.Mine.Yes, &m.Mine.No, &m.Mine.Spent,
		}, func() error {
			m.OpenedAt = opened.UnixMilli()
			at[m.ID] = len(s.Markets)
			if past {
				s.Markets = append(s.Markets, m)
			} else {
				brief := m
				brief.Title, brief.Question, brief.Category, brief.Rules = "", "", "", ""
				s.Markets = append(s.Markets, brief)
			}
			return nil
		})
		return err
	})
	if trader != 0 {
		batch.Queue(`SELECT balance FROM demo.trader WHERE id = $1`, trader).QueryRow(func(row pgx.Row) error {
			return wrapNoRows(row.Scan(&s.Balance), nil)
		})
	}
	if past {
		batch.Queue(historySQL, ids).Query(func(rows pgx.Rows) error {
			var id string
			var point [2]int64
			_, err := pgx.ForEachRow(rows, []any{&id, &point[0], &point[1]}, func() error {
				m := &s.Markets[at[id]]
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
				m := &s.Markets[at[id]]
				m.Tape = append(m.Tape, t)
				return nil
			})
			return err
		})
	}
	return tx.SendBatch(ctx, &batch).Close()
}

// Prune drops chart points that no chart shows any more.
func (x *exchange) Prune(ctx context.Context) error {
	_, err := x.pool.Exec(ctx, `DELETE FROM demo.tick WHERE second < extract(epoch FROM clock_timestamp())::bigint - 3600`)
	return err
}
