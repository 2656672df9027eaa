package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxSnapshot is the largest snapshot that [SnapshotURL] reads, in bytes: a larger one is a mistake, or needs pages.
const maxSnapshot = 64 << 20

// SnapshotError is what [Topic].Snapshot may say of a failure.
type SnapshotError struct {
	// Final: reading again will not help until something changes. Follow ends with it.
	Final bool
	// RetryAfter: not to be read again before.
	RetryAfter time.Duration
	Err        error
}

func (e *SnapshotError) Error() string { return e.Err.Error() }
func (e *SnapshotError) Unwrap() error { return e.Err }

// SnapshotURL reads snapshots as outbox's SnapshotHandler serves them:
//
//	{"state": …, "cursor": "3-7d0a41c2:1041", "pending": [], "epoch": "3-7d0a41c2"}
//
// A status of 408, 425, 429, 500 and above, and a connection that breaks, may pass; any other answer is final: a redirect, too,
// which is most likely a page to log in.
func SnapshotURL[S any](h *http.Client, url string) func(ctx context.Context) (Held[S], error) {
	direct := *h
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return func(ctx context.Context) (held Held[S], err error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return held, &SnapshotError{Final: true, Err: err}
		}
		r.Header.Set("Accept", "application/json")
		w, err := direct.Do(r)
		if err != nil {
			return held, err
		}
		defer w.Body.Close()
		if w.StatusCode != http.StatusOK {
			return held, &SnapshotError{
				Final: !passing(w.StatusCode), RetryAfter: retryAfter(w), Err: fmt.Errorf("%s answered %s", url, w.Status),
			}
		}
		text, err := io.ReadAll(io.LimitReader(w.Body, maxSnapshot+1))
		if err != nil {
			return held, err
		}
		var raw struct {
			State *json.RawMessage `json:"state"`
		}
		switch {
		case len(text) > maxSnapshot:
			err = fmt.Errorf("more than %d bytes", maxSnapshot)
		default:
			err = errors.Join(json.Unmarshal(text, &held.Token), json.Unmarshal(text, &raw))
		}
		if err == nil && raw.State == nil {
			err = errors.New("no state")
		}
		if err == nil {
			err = json.Unmarshal(*raw.State, &held.State)
		}
		if err != nil {
			return held, &SnapshotError{Final: true, Err: fmt.Errorf("%s did not answer with a snapshot: %w", url, err)}
		}
		return held, nil
	}
}

// passing says whether an answer that is not 2xx may be another one soon.
func passing(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

// retryAfter is what an answer says in Retry-After, in seconds.
func retryAfter(w *http.Response) time.Duration {
	seconds, err := strconv.Atoi(w.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, int(hintCap/time.Second))) * time.Second // before it is multiplied: it may be any number
}
