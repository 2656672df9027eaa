package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"

	"github.com/commitcast/commitcast/auth"
)

const (
	// setFresh is how old a JWK Set may be and still be trusted without looking again: for so long a key that was taken
	// out of it is accepted.
	setFresh = 5 * time.Minute
	// setStale is how old it may be while it cannot be fetched. Tokens are accepted through an outage of the issuer, but
	// not for ever on the word of yesterday.
	setStale = 24 * time.Hour
	// setPause is the time between two fetches, however many tokens name unknown keys.
	setPause = 10 * time.Second
	// setTimeout bounds one fetch: shorter than what a client has for its token.
	setTimeout = 3 * time.Second
	// setBytes bounds its size, in bytes.
	setBytes = 1 << 20
)

// errUnavailable: whether the token is good cannot be decided now.
var errUnavailable = errors.New("the issuer's keys cannot be read now")

// set is a JWK Set of an issuer, cached. It is fetched by whoever needs it, once for all who wait.
type set struct {
	url        string
	algorithms []string
	client     *http.Client
	log        *slog.Logger

	mu       sync.Mutex
	known    []Key
	fetched  time.Time     // when the fetch of known began; zero: never
	tried    time.Time     // when the last fetch ended
	fetching chan struct{} // closed when the fetch that is under way has ended; nil: none is
	failing  bool
}

func newSet(c Config) (*set, error) {
	if why := auth.CheckURL(c.JWKSURL, c.PlainHTTP); why != "" {
		return nil, errors.New("token: the URL of the JWK Set " + why)
	}
	client := c.Client
	if client == nil {
		client = &http.Client{
			// Seldom enough for a connection of its own each time.
			Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &set{url: c.JWKSURL, algorithms: c.Algorithms, client: client, log: c.Logger}, nil
}

// keys are those with an id and an algorithm; id "" is any. It fetches the set if that is old, or does not have the id. It is
// unavailable, not refused, as long as a newer set may have it.
func (s *set) keys(ctx context.Context, id, algorithm string) ([]Key, error) {
	asked := time.Now()
	for {
		s.mu.Lock()
		found := s.find(id, algorithm)
		now := time.Now()
		age := now.Sub(s.fetched)
		switch {
		case s.fetched.IsZero():
		case len(found) > 0 && age < setFresh:
			s.mu.Unlock()
			return found, nil
		case len(found) == 0 && !s.fetched.Before(asked): // it does not have it
			s.mu.Unlock()
			return nil, refused("no accepted key and algorithm have signed it")
		}
		if s.fetching == nil && now.Sub(s.tried) < setPause {
			s.mu.Unlock()
			if len(found) > 0 && age < setStale {
				return found, nil
			}
			return nil, errUnavailable
		}
		if s.fetching == nil {
			s.fetching = make(chan struct{})
			go s.fetch() // ends within setTimeout
		}
		wait := s.fetching
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, errUnavailable
		}
	}
}

func (s *set) find(id, algorithm string) (found []Key) {
	for _, k := range s.known {
		if k.algorithm == algorithm && (id == "" || k.id == "" || k.id == id) {
			found = append(found, k)
		}
	}
	return found
}

// fetch reads the set. One that cannot be read leaves what is known as it is; one without a key is taken at its word.
func (s *set) fetch() {
	ctx, cancel := context.WithTimeout(context.Background(), setTimeout)
	defer cancel()
	began := time.Now()
	known, err := s.read(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = time.Now()
	close(s.fetching)
	s.fetching = nil
	if err == nil {
		s.known, s.fetched = known, began
	}
	switch failing := err != nil; {
	case failing && !s.failing:
		s.log.Warn("the JWK Set cannot be read", "error", err, "keys", len(s.known))
	case !failing && s.failing:
		s.log.Info("the JWK Set can be read again", "keys", len(s.known))
	}
	s.failing = err != nil
}

func (s *set) read(ctx context.Context) ([]Key, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	response, err := s.client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // without the address, which may hold a secret
		}
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, setBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > setBytes {
		return nil, fmt.Errorf("larger than %d bytes", setBytes)
	}
	return parseSet(text, s.algorithms)
}

// parseSet reads the keys of a set that serve one of the algorithms. Others may be in it, for other purposes.
func parseSet(text []byte, algorithms []string) ([]Key, error) {
	var raw struct {
		Keys []jwkset.JWKMarshal `json:"keys"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("not a JWK Set: %w", err)
	}
	var keys []Key
	for _, marshal := range raw.Keys {
		if marshal.USE != "" && marshal.USE != jwkset.UseSig || len(marshal.KID) > maxKeyID {
			continue
		}
		// The key itself, and nothing else: a certificate beside it might have to be fetched from somewhere.
		jwk, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{KTY: marshal.KTY, CRV: marshal.CRV, X: marshal.X, Y: marshal.Y,
			N: marshal.N, E: marshal.E}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil {
			continue
		}
		if _, symmetric := jwk.Key().([]byte); symmetric {
			continue
		}
		key, err := newKey(marshal.KID, jwk.Key())
		if err != nil || !slices.Contains(algorithms, key.algorithm) || marshal.ALG != "" && string(marshal.ALG) != key.algorithm {
			continue
		}
		if keys = append(keys, key); len(keys) > maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
	}
	if raw.Keys == nil { // a set without a key is the issuer's word that none is good; this is no set
		return nil, fmt.Errorf("no key for %s in it", strings.Join(algorithms, ", "))
	}
	return keys, nil
}
