package client

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/commitcast/commitcast/wire"
)

// Token says where a state stands in its topic, exactly: what to go on from. Its three parts belong together, and to one
// state: store them in the same transaction as what was made of the state. Never changed once made.
type Token struct {
	// Cursor is the last event that the state contains without a hole before it.
	Cursor wire.Cursor
	// Pending are the ids of later events that it contains all the same: they are skipped, once, when they arrive.
	Pending []int64
	// Epoch is that of the snapshot. Pending means nothing in another: ids are reused by another history.
	Epoch string
}

// Held is a state with its token.
type Held[S any] struct {
	State S
	Token Token
}

// tokenJSON is the form that snapshots have, too.
type tokenJSON struct {
	Cursor  string  `json:"cursor"`
	Pending []int64 `json:"pending"`
	Epoch   string  `json:"epoch"`
}

// MarshalJSON writes {"cursor":"epoch:offset","pending":[…],"epoch":"…"}.
func (t Token) MarshalJSON() ([]byte, error) {
	pending := t.Pending
	if pending == nil {
		pending = []int64{}
	}
	return json.Marshal(tokenJSON{t.Cursor.String(), pending, t.Epoch})
}

// UnmarshalJSON reads what MarshalJSON writes, and what a snapshot has beside its state. The error says what is missing.
func (t *Token) UnmarshalJSON(text []byte) error {
	var raw tokenJSON
	if err := json.Unmarshal(text, &raw); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	cursor, err := wire.ParseCursor(raw.Cursor)
	switch {
	case err != nil:
		return errors.New("token: no valid cursor")
	case !wire.ValidEpoch(raw.Epoch):
		return errors.New("token: no valid epoch")
	case raw.Pending == nil:
		return errors.New("token: no pending ids")
	}
	read := Token{cursor, raw.Pending, raw.Epoch}
	if err := read.check(); err != nil {
		return err
	}
	*t = read
	return nil
}

// check reports what is wrong with a token that somebody gave.
func (t Token) check() error {
	switch {
	case !wire.ValidEpoch(t.Cursor.Epoch) || t.Cursor.Offset < 0 || t.Cursor.Offset > wire.MaxInteger:
		return errors.New("token: no valid cursor")
	case !wire.ValidEpoch(t.Epoch):
		return errors.New("token: no valid epoch")
	}
	for _, id := range t.Pending {
		if id < 0 || id > wire.MaxInteger {
			return errors.New("token: no valid pending ids")
		}
	}
	return nil
}
