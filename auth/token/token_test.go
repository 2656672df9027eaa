package token_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/auth/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keys are made once: RSA ones take a while.
var (
	edPublic, edPrivate, _ = ed25519.GenerateKey(rand.Reader)
	newPublic, _, _        = ed25519.GenerateKey(rand.Reader)
	_, strangerPrivate, _  = ed25519.GenerateKey(rand.Reader)
	ecPrivate, _           = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rsaPrivate             = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	secret                 = []byte("0123456789abcdef0123456789abcdef")
	hour                   = time.Hour
)

func pemOf(t testing.TB, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func part(v any) string {
	text, _ := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(text)
}

type m = map[string]any

// sign makes a token with nothing but the standard library. The algorithm of the signature is that of the key, whatever
// the header says.
func sign(t testing.TB, key any, header, claims m) string {
	t.Helper()
	text := part(header) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	var sig []byte
	var err error
	switch k := key.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(text))
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, k, sum[:])
		sig, err = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), e
	case *rsa.PrivateKey:
		sig, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(text))
		sig = mac.Sum(nil)
	case nil:
	}
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// good are claims that a verifier of this file takes; with changes, nil takes one away.
func good(changes m) m {
	c := m{"sub": "7", "aud": "commitcast", "iss": "https://issuer.test", "exp": time.Now().Add(hour).Unix(), "topics": []string{"market:*", "user:{sub}"}}
	for k, v := range changes {
		if v == nil {
			delete(c, k)
			continue
		}
		c[k] = v
	}
	return c
}

func verifier(t testing.TB, c token.Config) *token.Verifier {
	t.Helper()
	if c.Audiences == nil {
		c.Audiences = []string{"commitcast", "other"}
	}
	v, err := token.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func public(t testing.TB, texts ...[]byte) (keys []token.Key) {
	t.Helper()
	for _, text := range texts {
		k, err := token.ParsePublicKeys(text)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k...)
	}
	return keys
}

// Each algorithm is accepted where it is configured, with each of several keys, and nowhere else.
func TestAlgorithms(t *testing.T) {
	hs, err := token.ParseSecret(append(secret, '\n'))
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]string{
		"EdDSA": sign(t, edPrivate, m{"alg": "EdDSA"}, good(nil)), "ES256": sign(t, ecPrivate, m{"alg": "ES256"}, good(nil)),
		"RS256": sign(t, rsaPrivate(), m{"alg": "RS256", "kid": "whatever"}, good(nil)), "HS256": sign(t, secret, m{"alg": "HS256", "typ": "JWT"}, good(nil)),
	}
	edPEM, ecPEM, rsaPEM, newPEM := pemOf(t, edPublic), pemOf(t, &ecPrivate.PublicKey), pemOf(t, &rsaPrivate().PublicKey), pemOf(t, newPublic)
	for _, c := range []struct {
		name   string
		config token.Config
		takes  string
	}{
		{"EdDSA, two keys in one file", token.Config{Algorithms: []string{"EdDSA"}, Keys: public(t, append(newPEM, edPEM...))}, "EdDSA"},
		{"ES256", token.Config{Algorithms: []string{"ES256"}, Keys: public(t, ecPEM)}, "ES256"},
		{"RS256", token.Config{Algorithms: []string{"RS256"}, Keys: public(t, rsaPEM)}, "RS256"},
		{"HS256", token.Config{Algorithms: []string{"HS256"}, Keys: []token.Key{hs}}, "HS256"},
		{"two", token.Config{Algorithms: []string{"ES256", "EdDSA"}, Keys: public(t, edPEM, ecPEM)}, "EdDSA ES256"},
	} {
		v := verifier(t, c.config)
		for alg, text := range made {
			who, err := v.Verify(t.Context(), text)
			if taken := strings.Contains(c.takes, alg); taken != (err == nil) || !taken && !errors.Is(err, auth.ErrRefused) {
				t.Errorf("%s: a token of %s: %v", c.name, alg, err)
			} else if taken && (who.Subject != "7" || len(who.Topics) != 2 || !who.Topics[1].Match("user:7") || !json.Valid(who.Claims)) {
				t.Errorf("%s: %+v", c.name, who)
			}
		}
	}
}

// An attacker who knows the public key, or leaves the signature away, gets nowhere.
func TestAlgorithmConfusion(t *testing.T) {
	edPEM, rsaPEM := pemOf(t, edPublic), pemOf(t, &rsaPrivate().PublicKey)
	eddsa := verifier(t, token.Config{Algorithms: []string{"EdDSA"}, Keys: public(t, edPEM)})
	rs := verifier(t, token.Config{Algorithms: []string{"RS256"}, Keys: public(t, rsaPEM)})
	for name, text := range map[string]string{
		"none":             sign(t, nil, m{"alg": "none"}, good(nil)),
		"None":             sign(t, nil, m{"alg": "None"}, good(nil)),
		"no algorithm":     sign(t, edPrivate, m{}, good(nil)),
		"not a string":     sign(t, edPrivate, m{"alg": 1}, good(nil)),
		"no signature":     sign(t, nil, m{"alg": "EdDSA"}, good(nil)),
		"HMAC of the PEM":  sign(t, edPEM, m{"alg": "HS256"}, good(nil)),
		"HMAC of the key":  sign(t, []byte(edPublic), m{"alg": "HS256"}, good(nil)),
		"HMAC as EdDSA":    sign(t, []byte(edPublic), m{"alg": "EdDSA"}, good(nil)),
		"HMAC of RSA":      sign(t, rsaPEM, m{"alg": "HS256"}, good(nil)),
		"a stranger's":     sign(t, strangerPrivate, m{"alg": "EdDSA"}, good(nil)),
		"key in the token": sign(t, strangerPrivate, m{"alg": "EdDSA", "jwk": m{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(strangerPrivate[32:])}}, good(nil)),
		"critical header":  sign(t, edPrivate, m{"alg": "EdDSA", "crit": []string{"b64"}, "b64": true}, good(nil)),
		"kid not a name":   sign(t, edPrivate, m{"alg": "EdDSA", "kid": m{}}, good(nil)),
		"kid too long":     sign(t, edPrivate, m{"alg": "EdDSA", "kid": strings.Repeat("k", 257)}, good(nil)),
		"another text": sign(t, edPrivate, m{"alg": "EdDSA"}, good(nil))[:20] +
			sign(t, edPrivate, m{"alg": "EdDSA"}, good(m{"sub": "8"}))[20:],
	} {
		for _, v := range []*token.Verifier{eddsa, rs} {
			if name == "another text" {
				text = text[:strings.LastIndex(text, ".")+1] + text[strings.LastIndex(text, ".")+2:]
			}
			if who, err := v.Verify(t.Context(), text); !errors.Is(err, auth.ErrRefused) {
				t.Errorf("%s: %+v %v", name, who, err)
			}
		}
	}
}

func TestClaims(t *testing.T) {
	v := verifier(t, token.Config{Algorithms: []string{"EdDSA"}, Keys: public(t, pemOf(t, edPublic)), Issuer: "https://issuer.test"})
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	many := make([]string, auth.MaxPatterns+1)
	for i := range many {
		many[i] = "a"
	}
	for _, c := range []struct {
		name, says string // "" is good
		changes    m
	}{
		{"as it is", "", nil},
		{"one of several audiences", "", m{"aud": []string{"x", "other"}}},
		{"no subject", "sub", m{"sub": nil}},
		{"an empty subject", "sub", m{"sub": ""}},
		{"within the leeway", "", m{"exp": at(-5 * time.Second), "nbf": at(5 * time.Second)}},
		{"expired", "expired", m{"exp": at(-time.Minute)}},
		{"for ever", "required claim", m{"exp": nil}},
		{"until a word", "order", m{"exp": "tomorrow"}},
		{"not yet", "not valid yet", m{"nbf": at(time.Minute)}},
		{"made tomorrow", "not valid yet", m{"iat": at(24 * hour)}},
		{"for another", "audience", m{"aud": "billing"}},
		{"for nobody", "required claim", m{"aud": nil}},
		{"for a prefix", "audience", m{"aud": "commit"}},
		{"of another issuer", "issuer", m{"iss": "https://evil.test"}},
		{"of nobody", "required claim", m{"iss": nil}},
		{"subject is a number", "sub", m{"sub": 7}},
		{"topics is a string", "topics", m{"topics": "**"}},
		{"topics holds a number", "topics", m{"topics": []any{"a", 1}}},
		{"topics holds no pattern", "topics[1] is no pattern: a segment is", m{"topics": []string{"a", "s3cret*"}}},
		{"too many topics", "topics", m{"topics": many}},
		{"too long", "longer", m{"pad": strings.Repeat("x", auth.MaxToken)}},
	} {
		text := sign(t, edPrivate, m{"alg": "EdDSA"}, good(c.changes))
		who, err := v.Verify(t.Context(), text)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (!errors.Is(err, auth.ErrRefused) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %+v %v, want %q", c.name, who, err, c.says)
		case err != nil && (strings.Contains(err.Error(), text[:10]) || strings.Contains(err.Error(), "s3cret")):
			t.Errorf("%s: the error holds the token: %v", c.name, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "...", "a.b.c", "eyJ", strings.Repeat(".", 100), "é.é.é", "Bearer x"} {
		if _, err := v.Verify(t.Context(), bad); !errors.Is(err, auth.ErrRefused) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A token that does not say who it is of is taken where that was asked for.
func TestNoSubject(t *testing.T) {
	v := verifier(t, token.Config{Algorithms: []string{"EdDSA"}, Keys: public(t, pemOf(t, edPublic)), NoSubject: true})
	if who, err := v.Verify(t.Context(), sign(t, edPrivate, m{"alg": "EdDSA"}, good(m{"sub": nil}))); err != nil || who.Subject != "" || len(who.Topics) != 1 {
		t.Errorf("%+v %v", who, err)
	}
}

// Patterns of the configuration are filled with what the token says.
func TestGrants(t *testing.T) {
	p, err := auth.ParsePattern("{tenant}/user:{sub}")
	if err != nil {
		t.Fatal(err)
	}
	v := verifier(t, token.Config{Algorithms: []string{"EdDSA"}, Keys: public(t, pemOf(t, edPublic)), Grants: []auth.Pattern{p}, TopicsClaim: "may"})
	who, err := v.Verify(t.Context(), sign(t, edPrivate, m{"alg": "EdDSA"}, good(m{"tenant": "acme", "may": []string{"news"}})))
	if err != nil || len(who.Topics) != 2 || !who.Topics[0].Match("acme/user:7") || !who.Topics[1].Match("news") {
		t.Errorf("%+v %v", who, err)
	}
	who, err = v.Verify(t.Context(), sign(t, edPrivate, m{"alg": "EdDSA"}, good(m{"tenant": m{"x": 1}})))
	if err != nil || len(who.Topics) != 0 {
		t.Errorf("%+v %v", who, err)
	}
}

func TestConfigMistakes(t *testing.T) {
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	other, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	private, _ := x509.MarshalPKCS8PrivateKey(edPrivate)
	for name, text := range map[string][]byte{
		"nothing": nil, "words": []byte("hello"), "after": append(pemOf(t, edPublic), "hello"...),
		"a small RSA key": pemOf(t, &small.PublicKey), "another curve": pemOf(t, &other.PublicKey),
		"a private key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if keys, err := token.ParsePublicKeys(text); err == nil {
			t.Errorf("%s: %d keys", name, len(keys))
		}
	}
	for name, text := range map[string][]byte{"short": secret[1:], "a public key": pemOf(t, edPublic), "empty": nil} {
		if _, err := token.ParseSecret(text); err == nil {
			t.Errorf("%s is taken for a secret", name)
		}
	}
	hs, _ := token.ParseSecret(secret)
	ed := public(t, pemOf(t, edPublic))
	aud := []string{"a"}
	for name, c := range map[string]token.Config{
		"nothing":            {},
		"unknown algorithm":  {Algorithms: []string{"none"}, Keys: ed, Audiences: aud},
		"no key":             {Algorithms: []string{"EdDSA"}, Audiences: aud},
		"key of another":     {Algorithms: []string{"RS256"}, Keys: ed, Audiences: aud},
		"no audience":        {Algorithms: []string{"EdDSA"}, Keys: ed},
		"an empty audience":  {Algorithms: []string{"EdDSA"}, Keys: ed, Audiences: []string{""}},
		"HS256 with others":  {Algorithms: []string{"EdDSA", "HS256"}, Keys: append(ed, hs), Audiences: aud},
		"HS256 with a set":   {Algorithms: []string{"HS256"}, Keys: []token.Key{hs}, JWKSURL: "https://x.test", Audiences: aud},
		"a set in the clear": {Algorithms: []string{"EdDSA"}, JWKSURL: "http://issuer.test/keys", Audiences: aud},
		"a file as a set":    {Algorithms: []string{"EdDSA"}, JWKSURL: "file:///etc/passwd", Audiences: aud},
		"leeway":             {Algorithms: []string{"EdDSA"}, Keys: ed, Audiences: aud, Leeway: hour},
	} {
		if _, err := token.New(c); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for _, c := range []token.Config{{JWKSURL: "http://issuer.test/keys", PlainHTTP: true}, {JWKSURL: "http://127.0.0.1/keys"}, {JWKSURL: "http://[::1]:1/keys"},
		{JWKSURL: "http://localhost/keys"}, {JWKSURL: "https://issuer.test/keys"}} {
		c.Algorithms, c.Audiences = []string{"EdDSA"}, aud
		if _, err := token.New(c); err != nil {
			t.Errorf("%s: %v", c.JWKSURL, err)
		}
	}
}

// newIssuer publishes a JWK Set.
func newIssuer(t *testing.T, keys ...m) (url string) {
	t.Helper()
	text, _ := json.Marshal(m{"keys": keys})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(text) }))
	t.Cleanup(server.Close)
	return server.URL
}

func edJWK(id string, key ed25519.PublicKey, more m) m {
	j := m{"kty": "OKP", "crv": "Ed25519", "kid": id, "x": base64.RawURLEncoding.EncodeToString(key)}
	for k, v := range more {
		j[k] = v
	}
	return j
}

// What is in a set besides keys for signatures of the accepted algorithms is not used, and does not spoil the rest.
func TestSetHoldsOtherThings(t *testing.T) {
	_, encPrivate, _ := ed25519.GenerateKey(rand.Reader)
	enc := edJWK("enc", encPrivate.Public().(ed25519.PublicKey), m{"use": "enc"})
	other := edJWK("alg", encPrivate.Public().(ed25519.PublicKey), m{"alg": "ES256"})
	i := newIssuer(t, m{"kty": "oct", "kid": "oct", "k": base64.RawURLEncoding.EncodeToString(secret)}, m{"kty": "XYZ", "kid": "?"},
		m{"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"}, enc, other, edJWK("a", edPublic, m{"use": "sig", "alg": "EdDSA", "x5u": "https://evil.test/never"}))
	v := verifier(t, token.Config{Algorithms: []string{"EdDSA"}, JWKSURL: i})
	if _, err := v.Verify(t.Context(), sign(t, edPrivate, m{"alg": "EdDSA", "kid": "a"}, good(nil))); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), sign(t, edPrivate, m{"alg": "EdDSA"}, good(nil))); err != nil {
		t.Errorf("without kid: %v", err)
	}
	for _, text := range []string{sign(t, encPrivate, m{"alg": "EdDSA", "kid": "enc"}, good(nil)), sign(t, encPrivate, m{"alg": "EdDSA", "kid": "alg"}, good(nil)),
		sign(t, secret, m{"alg": "HS256", "kid": "oct"}, good(nil)), sign(t, encPrivate, m{"alg": "EdDSA"}, good(nil))} {
		if who, err := v.Verify(t.Context(), text); err == nil {
			t.Errorf("%+v", who)
		}
	}
}

// What is no set leaves the keys unknown: come back, not go away.
func TestSetThatIsNone(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"an error":   func(w http.ResponseWriter) { w.WriteHeader(500) },
		"a redirect": func(w http.ResponseWriter) { w.Header().Set("Location", "/keys"); w.WriteHeader(302) },
		"a page":     func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") },
		"nothing":    func(w http.ResponseWriter) { fmt.Fprint(w, `{}`) },
		"too much": func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":%q}],"pad":%q}`, base64.RawURLEncoding.EncodeToString(edPublic), strings.Repeat("x", 1<<20))
		},
		"too many": func(w http.ResponseWriter) {
			one := fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q}`, base64.RawURLEncoding.EncodeToString(edPublic))
			fmt.Fprintf(w, `{"keys":[%s]}`, strings.Join(slices.Repeat([]string{one}, 40), ","))
		},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/keys" {
				text, _ := json.Marshal(m{"keys": []m{edJWK("", edPublic, nil)}})
				w.Write(text)
				return
			}
			answer(w)
		}))
		v := verifier(t, token.Config{Algorithms: []string{"EdDSA"}, JWKSURL: server.URL, Logger: slog.New(slog.DiscardHandler)})
		if who, err := v.Verify(t.Context(), sign(t, edPrivate, m{"alg": "EdDSA"}, good(nil))); err == nil || errors.Is(err, auth.ErrRefused) {
			t.Errorf("%s: %+v %v", name, who, err)
		}
		server.Close()
	}
}

func FuzzVerify(f *testing.F) {
	v := verifier(f, token.Config{Algorithms: []string{"EdDSA"}, Keys: public(f, pemOf(f, edPublic))})
	fine := sign(f, edPrivate, m{"alg": "EdDSA"}, good(nil))
	for _, seed := range []string{fine, "", "..", sign(f, nil, m{"alg": "none"}, good(nil)), sign(f, edPrivate, m{"alg": "EdDSA", "kid": 1, "crit": nil}, good(nil)),
		sign(f, edPrivate, m{"alg": "EdDSA"}, good(m{"exp": 1e300, "nbf": -1, "aud": []any{1}})), "e30.e30.", "bnVsbA.bnVsbA.AA"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		who, err := v.Verify(context.Background(), text)
		if err == nil && text != fine || err != nil && !errors.Is(err, auth.ErrRefused) || (err == nil) != (who != nil) {
			t.Fatalf("%q: %+v %v", text, who, err)
		}
	})
}

// FuzzClaims: whatever a token says that a good key has signed, it is refused, or who it is of, until when and for what is
// what it says.
func FuzzClaims(f *testing.F) {
	v := verifier(f, token.Config{Algorithms: []string{"EdDSA"}, Keys: public(f, pemOf(f, edPublic))})
	for _, changes := range []m{nil, {"sub": 7}, {"exp": 1e300}, {"exp": nil}, {"aud": []any{"x", "other"}}, {"nbf": "tomorrow"}, {"topics": []any{"a*"}}, {"topics": "**"},
		{"topics": []any{"user:{sub}", "{x}"}, "sub": "7:admin"}, {"iat": -1}} {
		text, _ := json.Marshal(good(changes))
		f.Add(text)
	}
	f.Add([]byte(`{"aud":"billing","aud":"commitcast","exp":99999999999,"exp":1,"sub":"a","Sub":"b"}`))
	f.Add([]byte("{\"aud\":\"commitcast\",\"exp\":99999999999,\"sub\":\"\\u0000\xff\"} "))
	f.Fuzz(func(t *testing.T, claims []byte) {
		head := part(m{"alg": "EdDSA"}) + "." + base64.RawURLEncoding.EncodeToString(claims)
		who, err := v.Verify(context.Background(), head+"."+base64.RawURLEncoding.EncodeToString(ed25519.Sign(edPrivate, []byte(head))))
		if err != nil {
			if !errors.Is(err, auth.ErrRefused) || len(err.Error()) > 2*auth.MaxPattern*4 {
				t.Fatalf("%q: %v", claims, err)
			}
			return
		}
		var said struct {
			Audience any    `json:"aud"`
			Subject  string `json:"sub"`
		}
		all := m{}
		if json.Unmarshal(claims, &all) != nil {
			t.Fatalf("%q is taken for JSON", claims)
		}
		said.Audience = all["aud"]
		said.Subject, _ = all["sub"].(string)
		if aud := fmt.Sprint(said.Audience); !strings.Contains(aud, "commitcast") && !strings.Contains(aud, "other") {
			t.Fatalf("%q is for %s", claims, aud)
		}
		if _, has := all["exp"]; !has || who.Expires.Before(time.Now()) || who.Subject != said.Subject || !json.Valid(who.Claims) {
			t.Fatalf("%q: %+v", claims, who)
		}
		for _, p := range who.Topics {
			if p.Match("user:{sub}") || p.Match("") {
				t.Fatalf("%q: %v", claims, p)
			}
		}
	})
}
