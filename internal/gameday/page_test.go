package gameday

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/commitcast/commitcast/client"
	"github.com/commitcast/commitcast/internal/testkit"
)

const (
	// visitors is how many have the page open: more than may be missing unnoticed.
	visitors = 30
	// tokenLife is how long a token of the provider is good; an hour is usual.
	tokenLife = 5 * time.Second
)

// provider gives out tokens over HTTP, while it is up.
type provider struct {
	*httptest.Server
	down atomic.Bool
}

func newProvider(t *testing.T, issuer *testkit.Issuer) *provider {
	p := &provider{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.down.Load() {
			http.Error(w, "maintenance", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, issuer.Token(r.URL.Query().Get("sub"), []string{topic}, map[string]any{"exp": time.Now().Add(tokenLife).Unix()}))
	}))
	t.Cleanup(p.Close)
	return p
}

// page is one that visitors have open at both broadcasters, with tokens of a provider.
type page struct {
	s        *system
	provider *provider
	all      []*witness
}

// openPage opens it, and returns when all have been renewed at least once, and what opened them is more than a minute ago, which is as far as
// the alert looks back.
func openPage(s *system) *page {
	s.t.Helper()
	p := &page{s: s, provider: newProvider(s.t, s.issuer)}
	for i := range visitors {
		sub := fmt.Sprint("visitor-", i)
		c := client.Config{Token: func(ctx context.Context, _ bool) (string, error) { return p.provider.token(ctx, sub) }}
		url := s.b1.URL
		if i%2 > 0 {
			url = s.b2.URL
		}
		p.all = append(p.all, startWitness(s.t, sub, url, c, s.writer.pool))
	}
	p.follows()
	testkit.Eventually(s.t, 2*time.Minute, func() error {
		// As counted, where nothing is extrapolated; and for longer than anybody looks back: their first tokens do not count any more.
		n, err := s.watch.finds(fmt.Sprintf(`sum(%[1]s) - sum(%[1]s offset 70s) > %[3]d
			and (sum(%[2]s) - sum(%[2]s offset 70s)) - (sum(%[1]s) - sum(%[1]s offset 70s)) < 5`,
			"commitcast_broadcaster_sessions_expired_total", `commitcast_broadcaster_tokens_total{outcome="accepted"}`, visitors))
		if err == nil && n == 0 {
			err = errors.New("not yet")
		}
		return err
	}, "visitors come back as often as they go")
	return p
}

func (p *provider) token(ctx context.Context, sub string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"?sub="+sub, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text := make([]byte, 4<<10)
	n, _ := resp.Body.Read(text)
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the provider answers %s", resp.Status)
	}
	return string(text[:n]), nil
}

// follows waits until all visitors have what is written from now on.
func (p *page) follows() {
	p.s.t.Helper()
	from := p.s.writer.committed()
	testkit.Eventually(p.s.t, curedWithin, func() error {
		for _, w := range p.all {
			if n := w.has(); n < from+1 {
				return fmt.Errorf("%s has %d, not %d", w.name, n, from+1)
			}
		}
		return nil
	}, "all visitors follow")
}
