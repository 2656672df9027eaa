package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/commitcast/commitcast/cmd/demo/lmsr"
	"github.com/commitcast/commitcast/outbox"
)

// problemType begins the types of the demo's own problems.
const problemType = "urn:problem:"

func newProblem(status int, name, title, detail string) *outbox.Problem {
	return &outbox.Problem{Type: problemType + name, Title: title, Status: status, Detail: detail}
}

func badRequest(detail string) *outbox.Problem {
	return newProblem(http.StatusBadRequest, "bad-request", "The request cannot be read", detail)
}

// explained gives errors of the exchange the problem that clients are told. Others are package outbox's to tell.
func explained(err error) error {
	switch {
	case errors.Is(err, errUnknownMarket):
		return newProblem(http.StatusNotFound, "unknown-market", "Unknown market", err.Error())
	case errors.Is(err, errUnknownTrader):
		return newProblem(http.StatusUnauthorized, "unknown-trader", "Unknown trader", "POST /api/session first")
	case errors.Is(err, errNoMoney):
		return newProblem(http.StatusUnprocessableEntity, "no-money", "Not enough money", err.Error())
	case errors.Is(err, errNoShares):
		return newProblem(http.StatusUnprocessableEntity, "no-shares", "Not enough shares", err.Error())
	case errors.Is(err, lmsr.ErrPriceLimit):
		return newProblem(http.StatusUnprocessableEntity, "price-limit", "Too large for this market",
			"the trade would move the price past 1¢ or 99¢")
	case errors.Is(err, lmsr.ErrAmount):
		return newProblem(http.StatusUnprocessableEntity, "amount", "The amount is out of range",
			"an amount is from one millionth to one million")
	}
	return err
}

// writeProblem answers with an error.
func writeProblem(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	p, ours := outbox.ProblemOf(explained(err))
	if ours && !errors.Is(r.Context().Err(), context.Canceled) {
		log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	p.ServeHTTP(w, r)
}
