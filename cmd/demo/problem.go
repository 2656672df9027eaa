package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/outbox"
)

// problem is an answer of type application/problem+json (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Quote  *Quote `json:"quote,omitempty"` // with a 409: what the market offers now
}

func (p *problem) Error() string { return p.Title + ": " + p.Detail }

func newProblem(status int, name, title, detail string) *problem {
	return &problem{Type: "urn:problem:" + name, Title: title, Status: status, Detail: detail}
}

func badRequest(detail string) *problem {
	return newProblem(http.StatusBadRequest, "bad-request", "The request cannot be read", detail)
}

// problemOf is what the client is told about an error, and whether the error is the server's own.
func problemOf(err error) (p *problem, ours bool) {
	var stale *StalePriceError
	var said *problem
	switch {
	case errors.As(err, &said):
		return said, false
	case errors.As(err, &stale):
		p = newProblem(http.StatusConflict, "stale-price", "The market moved", stale.Error())
		p.Quote = &stale.Quote
		return p, false
	case errors.Is(err, errUnknownMarket):
		return newProblem(http.StatusNotFound, "unknown-market", "Unknown market", err.Error()), false
	case errors.Is(err, errUnknownTrader):
		return newProblem(http.StatusUnauthorized, "unknown-trader", "Unknown trader", "POST /api/session first"), false
	case errors.Is(err, errNoMoney):
		return newProblem(http.StatusUnprocessableEntity, "no-money", "Not enough money", err.Error()), false
	case errors.Is(err, errNoShares):
		return newProblem(http.StatusUnprocessableEntity, "no-shares", "Not enough shares", err.Error()), false
	case errors.Is(err, lmsr.ErrPriceLimit):
		return newProblem(http.StatusUnprocessableEntity, "price-limit", "Too large for this market",
			"the trade would move the price past 1¢ or 99¢"), false
	case errors.Is(err, lmsr.ErrAmount):
		return newProblem(http.StatusUnprocessableEntity, "amount", "The amount is out of range",
			"an amount is from one millionth to one million"), false
	case errors.Is(err, outbox.ErrTooManyPending):
		return newProblem(http.StatusServiceUnavailable, "behind", "Too far behind",
			"more events wait for the worker than a snapshot names; start the worker"), false
	case errors.Is(err, outbox.ErrEpochPending):
		return newProblem(http.StatusServiceUnavailable, "epoch", "The database has just restarted",
			"no worker has begun its new epoch yet; start the worker"), false
	default:
		return newProblem(http.StatusServiceUnavailable, "unavailable", "The exchange cannot answer now",
			"the database did not answer; nothing is known to have happened; try again with the same request id"), true
	}
}

// writeProblem answers with an error.
func writeProblem(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	p, ours := problemOf(err)
	if ours && !errors.Is(r.Context().Err(), context.Canceled) {
		log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone
}
