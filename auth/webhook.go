package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
)

const (
	// webhookAnswer bounds an answer, in bytes.
	webhookAnswer = 4 << 10
	// webhookFailures in a row open the circuit: then nobody is asked, and nothing new is allowed, for a while.
	webhookFailures = 5
	// webhookRest is that while. It doubles with each failed attempt to close the circuit, up to webhookMaxRest.
	webhookRest, webhookMaxRest = time.Second, 30 * time.Second
	// webhookRefusal is how long a refusal is remembered: short, for people who have just been given access, and long
	// enough that asking again and again costs the service nothing.
	webhookRefusal = 5 * time.Second
)

// WebhookConfig says whom a [Webhook] asks. Only URL is required.
type WebhookConfig struct {
	// URL gets a POST for each decision.
	URL string
	// PlainHTTP allows a URL of http:// on another machine, where a mesh encrypts, say.
	PlainHTTP bool
	// Bearer is sent as Authorization, so that the service knows who asks. Default: nothing.
	Bearer string
	// Timeout bounds one question, including the wait for its turn. Default 1 s.
	Timeout time.Duration
	// TTL is how long a permission is remembered: how long somebody may go on subscribing who no longer may. Default 30 s.
	TTL time.Duration
	// Remembered is how many decisions are remembered. Default 100,000: about 20 MB.
	Remembered int
	// AtOnce is how many questions are under way at once. Default 64.
	AtOnce int
	// Logger receives a line when the service fails, and when it answers again. Default slog.Default().
	Logger *slog.Logger
	// Registerer receives the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Webhook is an [Authorizer] that asks a service: a POST of
//
//	{"subject":"7","topic":"market:42","claims":{…}}
//
// which answers 200 with {"allow":true} or {"allow":false}, or 403 for no. All else allows nothing, and is not remembered. It
// is a failure of the service if it is no answer, a slow one, a redirect, or a status other than 4xx, and 408 and 429: after some
// in a row nobody is asked for a while. Another 4xx is about one topic, and that too much is asked at once is about this node: so is
// a slow answer to a question that has waited for its turn for more than half of Timeout.
type Webhook struct {
	cfg    WebhookConfig
	client *http.Client
	turns  chan struct{}
	group  singleflight.Group
	asked  *prometheus.CounterVec

	mu       sync.Mutex
	known    map[webhookKey]webhookDecision
	failures int           // in a row
	rest     time.Duration // the last one
	closed   time.Time     // the circuit is open until then
	probing  bool          // one question is under way to see whether it can be closed
}

// webhookKey is what a decision is about: a topic, and all that a token says.
type webhookKey struct {
	claims [sha256.Size]byte
	topic  string
}

type webhookDecision struct {
	allowed bool
	until   time.Time
}

var (
	errWebhook = errors.New("the service that decides about topics does not answer")
	// errNoTurn: the service was not asked.
	errNoTurn = errors.New("too many questions at once")
	// errLate: it was asked when most of the time had gone with waiting for a turn.
	errLate = errors.New("too many questions at once: it had little time to answer")
	// errNotThis: the service is well, and does not decide about this topic.
	errNotThis = errors.New("it answered")
)

// NewWebhook makes a Webhook. Nothing is asked before the first topic.
func NewWebhook(c WebhookConfig) (*Webhook, error) {
	if why := CheckURL(c.URL, c.PlainHTTP); why != "" {
		return nil, errors.New("auth: the URL of the webhook " + why)
	}
	if c.Timeout < 0 || c.TTL < 0 || c.Remembered < 0 || c.AtOnce < 0 {
		return nil, errors.New("auth: a limit of the webhook is negative")
	}
	setDefault(&c.Timeout, time.Second)
	setDefault(&c.TTL, 30*time.Second)
	setDefault(&c.Remembered, 100_000)
	setDefault(&c.AtOnce, 64)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	w := &Webhook{cfg: c, turns: make(chan struct{}, c.AtOnce), known: make(map[webhookKey]webhookDecision),
		client: &http.Client{
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: c.AtOnce, MaxConnsPerHost: c.AtOnce,
				IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 16 << 10, ForceAttemptHTTP2: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "commitcast_webhook_questions_total",
			Help: "Questions about topics, by outcome: allowed, forbidden, remembered, failed, spared (the circuit was open)."}, []string{"outcome"})}
	for _, outcome := range []string{"allowed", "forbidden", "remembered", "failed", "spared"} {
		w.asked.WithLabelValues(outcome)
	}
	if c.Registerer != nil {
		c.Registerer.MustRegister(w.asked)
	}
	return w, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Close ends idle connections.
func (w *Webhook) Close() { w.client.CloseIdleConnections() }

// Authorize is that of [Authorizer]. Those who ask the same at the same time share one question.
func (w *Webhook) Authorize(ctx context.Context, who *Identity, topic string) error {
	key := webhookKey{sha256.Sum256(append([]byte(who.Subject+"\x00"), who.Claims...)), topic}
	if d, ok := w.remembered(key); ok {
		w.asked.WithLabelValues("remembered").Inc()
		return d.err(topic)
	}
	shared := w.group.DoChan(string(key.claims[:])+topic, func() (any, error) {
		if d, ok := w.remembered(key); ok {
			return d, nil
		}
		// Not under the ctx of the one who came first: others wait for this, too.
		ctx, cancel := context.WithTimeout(context.Background(), w.cfg.Timeout)
		defer cancel()
		return w.decide(ctx, key, who, topic)
	})
	select {
	case r := <-shared:
		if r.Err != nil {
			return r.Err
		}
		return r.Val.(webhookDecision).err(topic)
	case <-ctx.Done():
		return errWebhook
	}
}

func (d webhookDecision) err(topic string) error {
	if d.allowed {
		return nil
	}
	return fmt.Errorf("%w: the service does not allow %q", ErrForbidden, topic)
}

// decide asks, unless the circuit is open, and remembers the answer.
func (w *Webhook) decide(ctx context.Context, key webhookKey, who *Identity, topic string) (webhookDecision, error) {
	may, probe := w.try()
	if !may {
		w.asked.WithLabelValues("spared").Inc()
		return webhookDecision{}, errWebhook
	}
	allowed, err := w.ask(ctx, who, topic)
	switch {
	case errors.Is(err, errNoTurn), errors.Is(err, errLate):
		w.untried(probe)
	case errors.Is(err, errNotThis):
		w.tried(nil)
	default:
		w.tried(err)
	}
	if err != nil {
		w.asked.WithLabelValues("failed").Inc()
		return webhookDecision{}, fmt.Errorf("%w: %v", errWebhook, err)
	}
	d := webhookDecision{allowed, time.Now().Add(w.cfg.TTL)}
	outcome := "allowed"
	if !allowed {
		d.until, outcome = time.Now().Add(min(webhookRefusal, w.cfg.TTL)), "forbidden"
	}
	w.asked.WithLabelValues(outcome).Inc()
	w.remember(key, d)
	return d, nil
}

func (w *Webhook) ask(ctx context.Context, who *Identity, topic string) (allowed bool, err error) {
	began := time.Now()
	select {
	case w.turns <- struct{}{}:
		defer func() { <-w.turns }()
	case <-ctx.Done():
		return false, errNoTurn
	}
	if ctx.Err() != nil { // both came at once
		return false, errNoTurn
	}
	if time.Since(began) > w.cfg.Timeout/2 {
		defer func() {
			if err != nil && ctx.Err() != nil { // that says nothing about the service
				err = errLate
			}
		}()
	}
	question := struct {
		Subject string          `json:"subject"`
		Topic   string          `json:"topic"`
		Claims  json.RawMessage `json:"claims,omitempty"`
	}{who.Subject, topic, who.Claims}
	body, err := json.Marshal(question)
	if err != nil {
		return false, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	r.Header.Set("Content-Type", "application/json")
	if w.cfg.Bearer != "" {
		r.Header.Set("Authorization", "Bearer "+w.cfg.Bearer)
	}
	response, err := w.client.Do(r)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // without the address, which may hold a secret
		}
		return false, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, webhookAnswer))
	switch {
	case response.StatusCode == http.StatusForbidden:
		return false, nil
	case response.StatusCode/100 == 4 && response.StatusCode != http.StatusRequestTimeout && response.StatusCode != http.StatusTooManyRequests:
		return false, fmt.Errorf("%w %s", errNotThis, response.Status)
	case response.StatusCode != http.StatusOK:
		return false, fmt.Errorf("it answered %s", response.Status)
	case err != nil:
		return false, err
	}
	var answer struct {
		Allow *bool `json:"allow"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Allow == nil {
		return false, errors.New(`its answer does not say "allow"`)
	}
	return *answer.Allow, nil
}

// try reports whether somebody may be asked now, and whether that is to see if the circuit can be closed.
func (w *Webhook) try() (may, probe bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failures < webhookFailures {
		return true, false
	}
	if w.probing || time.Now().Before(w.closed) {
		return false, false
	}
	w.probing = true
	return true, true
}

// untried notes that nobody was asked after all, which says nothing about the service.
func (w *Webhook) untried(probe bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if probe {
		w.probing = false
	}
}

// tried notes how a question went.
func (w *Webhook) tried(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		if w.failures >= webhookFailures {
			w.cfg.Logger.Info("the webhook answers again")
		}
		w.failures, w.rest, w.probing = 0, 0, false
		return
	}
	if w.failures++; w.failures < webhookFailures {
		return
	}
	if w.failures == webhookFailures || w.probing {
		w.rest = min(max(2*w.rest, webhookRest), webhookMaxRest)
		w.closed = time.Now().Add(w.rest)
	}
	if w.failures == webhookFailures {
		w.cfg.Logger.Warn("the webhook fails: nobody is asked, and nothing new is allowed", "for", w.rest, "error", err)
	}
	w.probing = false
}

func (w *Webhook) remembered(key webhookKey) (webhookDecision, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.known[key]
	return d, ok && time.Now().Before(d.until)
}

// remember keeps a decision. When there are too many, some go: first of all those that are over, of a few that chance picks.
func (w *Webhook) remember(key webhookKey, d webhookDecision) {
	const looks = 8
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, has := w.known[key]; !has && len(w.known) >= w.cfg.Remembered {
		now, n := time.Now(), 0
		var victim webhookKey
		for k, old := range w.known {
			victim = k
			if n++; n >= looks || !now.Before(old.until) {
				break
			}
		}
		delete(w.known, victim)
	}
	w.known[key] = d
}
