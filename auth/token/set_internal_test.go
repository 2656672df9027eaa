package token

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/commitcast/commitcast/auth"
)

// published answers requests for a JWK Set, without a network: time in these tests is that of a bubble.
type published struct {
	mu      sync.Mutex
	ids     []string
	err     error
	slow    time.Duration
	fetched atomic.Int64
	keys    map[string]ed25519.PublicKey
}

func (p *published) RoundTrip(r *http.Request) (*http.Response, error) {
	p.fetched.Add(1)
	p.mu.Lock()
	ids, err, slow := p.ids, p.err, p.slow
	p.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	var set struct {
		Keys []map[string]string `json:"keys"`
	}
	if ids != nil {
		set.Keys = []map[string]string{}
	}
	for _, id := range ids {
		set.Keys = append(set.Keys, map[string]string{"kty": "OKP", "crv": "Ed25519", "kid": id, "x": base64.RawURLEncoding.EncodeToString(p.keys[id])})
	}
	text, _ := json.Marshal(set)
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(string(text)))}, nil
}

func (p *published) set(err error, slow time.Duration, ids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.slow, p.ids = err, slow, ids
}

// bubble runs f in a bubble of time, with a set that publishes key "a".
func bubble(t *testing.T, f func(t *testing.T, s *set, p *published)) {
	synctest.Test(t, func(t *testing.T) {
		p := &published{keys: map[string]ed25519.PublicKey{}}
		for _, id := range []string{"a", "b"} {
			p.keys[id], _, _ = ed25519.GenerateKey(rand.Reader)
		}
		p.set(nil, 0, "a")
		s, err := newSet(Config{JWKSURL: "https://issuer.test/keys", Algorithms: []string{EdDSA}, Client: &http.Client{Transport: p},
			Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		f(t, s, p)
	})
}

func (s *set) expect(t *testing.T, id string, want error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	keys, err := s.keys(ctx, id, EdDSA)
	if !errors.Is(err, want) || (err == nil) != (len(keys) > 0) {
		t.Fatalf("key %s: %d keys, %v; want %v", id, len(keys), err, want)
	}
}

// A key that is new is found at once; one that was taken out is refused when the set is looked at again.
func TestSetRotates(t *testing.T) {
	bubble(t, func(t *testing.T, s *set, p *published) {
		s.expect(t, "a", nil)
		time.Sleep(setPause)
		p.set(nil, 0, "a", "b")
		s.expect(t, "b", nil)
		s.expect(t, "a", nil)
		if n := p.fetched.Load(); n != 2 {
			t.Errorf("fetched %d times", n)
		}
		p.set(nil, 0, "b")
		s.expect(t, "a", nil) // not known yet
		time.Sleep(setFresh)
		s.expect(t, "a", auth.ErrRefused)
		s.expect(t, "b", nil)
	})
}

// However many tokens name unknown keys, the set is fetched seldom; those who may be right are told to come back.
func TestSetIsNotHammered(t *testing.T) {
	bubble(t, func(t *testing.T, s *set, p *published) {
		p.set(nil, time.Second, "a")
		began := time.Now()
		var refused, unavailable atomic.Int64
		for time.Since(began) < time.Minute {
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					_, err := s.keys(context.Background(), "unknown", EdDSA)
					if errors.Is(err, auth.ErrRefused) {
						refused.Add(1)
					} else if errors.Is(err, errUnavailable) {
						unavailable.Add(1)
					}
				})
			}
			all.Wait()
			time.Sleep(time.Second)
		}
		if n := p.fetched.Load(); n > 7 {
			t.Errorf("fetched %d times within a minute", n)
		}
		if refused.Load() == 0 || unavailable.Load() == 0 {
			t.Errorf("%d refused, %d told to come back", refused.Load(), unavailable.Load())
		}
		s.expect(t, "a", nil) // and the others are served
	})
}

// An issuer that is away or slow stops nobody whose key is known, for a day.
func TestSetOutage(t *testing.T) {
	bubble(t, func(t *testing.T, s *set, p *published) {
		p.set(errors.New("away"), 0)
		s.expect(t, "a", errUnavailable)
		p.set(nil, 0, "a")
		s.expect(t, "a", errUnavailable) // within the pause
		time.Sleep(setPause)
		s.expect(t, "a", nil)
		for _, how := range []struct {
			err  error
			slow time.Duration
			ids  []string
		}{{errors.New("away"), 0, nil}, {nil, time.Hour, []string{"a"}}, {nil, 0, nil}} { // the last: no set
			p.set(how.err, how.slow, how.ids...)
			time.Sleep(setFresh + setPause)
			s.expect(t, "a", nil)
			began := time.Now()
			s.expect(t, "a", nil) // the outage is known: nobody waits
			s.expect(t, "b", errUnavailable)
			if d := time.Since(began); d != 0 {
				t.Errorf("waited %v", d)
			}
		}
		time.Sleep(setStale)
		s.expect(t, "a", errUnavailable)
		p.set(nil, 0, "a")
		time.Sleep(setPause)
		s.expect(t, "a", nil)
	})
}

// A set without a key is the issuer's word: none is good any more.
func TestSetIsEmptied(t *testing.T) {
	bubble(t, func(t *testing.T, s *set, p *published) {
		s.expect(t, "a", nil)
		p.set(nil, 0, []string{}...)
		time.Sleep(setFresh)
		s.expect(t, "a", auth.ErrRefused)
		p.set(nil, 0, "a")
		time.Sleep(setPause)
		s.expect(t, "a", nil)
	})
}

// FuzzSet: whatever is published in the place of a set, it is no set, or its keys are of accepted algorithms and sizes, none a
// secret, and not too many.
func FuzzSet(f *testing.F) {
	for _, seed := range []string{`{"keys":[]}`, `{}`, `{"keys":null}`, `[]`, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA"}]}`, `{"keys":[{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}`, `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`,
		`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA","x5u":"https://x.test"}]}`, `{"keys":[{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`} {
		f.Add([]byte(seed))
	}
	accepted := []string{EdDSA, ES256, RS256}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseSet(text, accepted)
		if err != nil && len(keys) > 0 || len(keys) > maxKeys {
			t.Fatalf("%q: %d keys, %v", text, len(keys), err)
		}
		for _, k := range keys {
			if _, secret := k.key.([]byte); secret || !slices.Contains(accepted, k.algorithm) || len(k.id) > maxKeyID {
				t.Fatalf("%q: %+v", text, k)
			}
			if _, err := newKey(k.id, k.key); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}

// FuzzKeys: whatever a file of keys holds, it is refused, or its keys are good ones, and a private key is never one.
func FuzzKeys(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("0123456789abcdef0123456789abcdef\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := ParsePublicKeys(text)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%q: %d keys, %v", text, len(keys), err)
		}
		secret, err := ParseSecret(text)
		if err == nil && (len(keys) > 0 || len(secret.key.([]byte)) < minSecret) {
			t.Fatalf("%q is a secret", text)
		}
	})
}
