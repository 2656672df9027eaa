package token

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/commitcast/commitcast/auth"
)

const (
	// MaxLeeway is the most by which clocks may differ: more would be a longer life for every token.
	MaxLeeway = 5 * time.Minute
	// maxKeyID is the longest value of a token's "kid", in bytes.
	maxKeyID = 256
)

// Config says which tokens are good.
type Config struct {
	// Algorithms are those that are accepted. Required. HS256 stands alone: where it is accepted, nothing else is.
	Algorithms []string
	// Keys are accepted at once, each for its algorithm. They, or JWKSURL, or both.
	Keys []Key
	// JWKSURL is where the issuer publishes its keys. https, or http on this machine.
	JWKSURL string
	// PlainHTTP allows it to be http:// on another machine, where a mesh encrypts, say.
	PlainHTTP bool
	// NoSubject accepts tokens without "sub". All of their connections count as those of one user. Default: they are refused,
	// since nothing else would bound how many connections one client has.
	NoSubject bool
	// Audiences: a token must name one of them as "aud". Required, so that a token for another service is of no use here.
	Audiences []string
	// Issuer is what "iss" must be. Default: anything.
	Issuer string
	// Leeway is by how much clocks may differ, for "exp", "nbf" and "iat". Default 10 s, at most 5 minutes; negative: none.
	Leeway time.Duration
	// TopicsClaim is the claim that holds patterns of topics: an array of strings. Default "topics".
	TopicsClaim string
	// Grants are patterns of topics that every good token allows besides, such as user:{sub}.
	Grants []auth.Pattern
	// Client fetches JWKSURL. Default: one with time limits that follows no redirect.
	Client *http.Client
	// Logger receives a line when the JWK Set cannot be read, or can again. Default slog.Default().
	Logger *slog.Logger
}

// Verifier is an [auth.Verifier] of JSON Web Tokens.
type Verifier struct {
	cfg    Config
	set    *set // nil without a URL
	parser *jwt.Parser
}

// New makes a Verifier. Nothing is fetched before the first token.
func New(c Config) (*Verifier, error) {
	if len(c.Algorithms) == 0 {
		return nil, errors.New("token: no algorithm")
	}
	for _, a := range c.Algorithms {
		if !slices.Contains([]string{EdDSA, ES256, RS256, HS256}, a) {
			return nil, fmt.Errorf("token: algorithm %q; there are EdDSA, ES256, RS256 and HS256", a)
		}
	}
	if slices.Contains(c.Algorithms, HS256) && (len(c.Algorithms) > 1 || c.JWKSURL != "") {
		return nil, errors.New("token: HS256 stands alone, and has no JWK Set: its key is a secret")
	}
	if len(c.Keys) == 0 && c.JWKSURL == "" {
		return nil, errors.New("token: no key, and no JWK Set")
	}
	if len(c.Keys) > maxKeys {
		return nil, fmt.Errorf("token: %d keys; at most %d", len(c.Keys), maxKeys)
	}
	for _, k := range c.Keys {
		if !slices.Contains(c.Algorithms, k.algorithm) {
			return nil, fmt.Errorf("token: a key of %s, which is not accepted", k.algorithm)
		}
	}
	if len(c.Audiences) == 0 || slices.Contains(c.Audiences, "") {
		return nil, errors.New("token: no audience: a token for another service would be good here")
	}
	switch {
	case c.Leeway > MaxLeeway:
		return nil, fmt.Errorf("token: a leeway of %v; at most %v", c.Leeway, MaxLeeway)
	case c.Leeway < 0:
		c.Leeway = 0
	case c.Leeway == 0:
		c.Leeway = 10 * time.Second
	}
	if c.TopicsClaim == "" {
		c.TopicsClaim = "topics"
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	options := []jwt.ParserOption{
		jwt.WithValidMethods(c.Algorithms), jwt.WithAudience(c.Audiences...), jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(), jwt.WithLeeway(c.Leeway), jwt.WithStrictDecoding(),
	}
	if c.Issuer != "" {
		options = append(options, jwt.WithIssuer(c.Issuer))
	}
	v := &Verifier{cfg: c, parser: jwt.NewParser(options...)}
	if c.JWKSURL != "" {
		var err error
		if v.set, err = newSet(c); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Verify is that of [auth.Verifier].
func (v *Verifier) Verify(ctx context.Context, token string) (*auth.Identity, error) {
	if len(token) > auth.MaxToken {
		return nil, refused("longer than %d bytes", auth.MaxToken)
	}
	claims := jwt.MapClaims{}
	var unavailable error
	_, err := v.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		keys, err := v.keys(ctx, t)
		if err != nil && !errors.Is(err, auth.ErrRefused) {
			unavailable = err
		}
		if len(keys.Keys) > 0 {
			return keys, nil
		}
		return nil, err
	})
	switch {
	case err == nil:
		return v.identity(token, claims)
	case unavailable != nil && (errors.Is(err, jwt.ErrTokenUnverifiable) || errors.Is(err, jwt.ErrTokenSignatureInvalid)):
		return nil, unavailable // a key that cannot be read may have signed it
	}
	return nil, why(err)
}

// keys are those that may have signed a token. With an error, there may be more.
func (v *Verifier) keys(ctx context.Context, t *jwt.Token) (jwt.VerificationKeySet, error) {
	var found jwt.VerificationKeySet
	if _, critical := t.Header["crit"]; critical {
		return found, refused("a critical header that is not understood")
	}
	id, ok := t.Header["kid"].(string)
	if _, has := t.Header["kid"]; has && !ok || len(id) > maxKeyID {
		return found, refused("kid is not a name")
	}
	algorithm := t.Method.Alg()
	for _, k := range v.cfg.Keys {
		if k.algorithm == algorithm {
			found.Keys = append(found.Keys, k.key)
		}
	}
	if v.set == nil {
		return found, nil
	}
	published, err := v.set.keys(ctx, id, algorithm)
	for _, k := range published {
		found.Keys = append(found.Keys, k.key)
	}
	return found, err
}

// identity reads the claims of a token that is good.
func (v *Verifier) identity(token string, claims jwt.MapClaims) (*auth.Identity, error) {
	subject, err := claims.GetSubject()
	if err != nil {
		return nil, refused("sub is not a string")
	}
	if subject == "" && !v.cfg.NoSubject {
		return nil, refused("it does not say who it is of: sub is missing")
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil {
		return nil, refused("exp is not a time")
	}
	who := &auth.Identity{Subject: subject, Expires: expires.Add(v.cfg.Leeway)}
	patterns := slices.Clone(v.cfg.Grants)
	if raw := claims[v.cfg.TopicsClaim]; raw != nil {
		list, ok := raw.([]any)
		if !ok || len(list) > auth.MaxPatterns {
			return nil, refused("%s is not an array of at most %d patterns", v.cfg.TopicsClaim, auth.MaxPatterns)
		}
		for i, item := range list {
			text, ok := item.(string)
			if !ok {
				return nil, refused("%s holds what is not a string", v.cfg.TopicsClaim)
			}
			p, err := auth.ParsePattern(text)
			if err != nil { // which quotes the pattern, a part of the token
				return nil, refused("%s[%d] is no pattern: %v", v.cfg.TopicsClaim, i, errors.Unwrap(err))
			}
			patterns = append(patterns, p)
		}
	}
	for _, p := range patterns {
		filled, ok := p.Fill(func(name string) (string, bool) {
			value, ok := claims[name].(string)
			return value, ok
		})
		if ok {
			who.Topics = append(who.Topics, filled)
		}
	}
	middle := strings.Split(token, ".")[1] // there are three parts, and it was decoded before
	if who.Claims, err = base64.RawURLEncoding.DecodeString(middle); err != nil || !json.Valid(who.Claims) {
		return nil, refused("its claims are not JSON")
	}
	return who, nil
}

// why is what a client may be told: which check failed, and nothing of the token.
func why(err error) error {
	var told *refusal
	switch {
	case errors.As(err, &told):
		return told
	case errors.Is(err, jwt.ErrTokenMalformed):
		return refused("not a JSON Web Token")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return refused("no accepted key and algorithm have signed it")
	case errors.Is(err, jwt.ErrTokenExpired):
		return refused("it has expired")
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return refused("it is not valid yet")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return refused("it is for another audience")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return refused("it is of another issuer")
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return refused("a required claim is missing; there must be exp and aud")
	}
	return refused("its claims are not in order")
}

// refusal is an error about a token.
type refusal struct{ why string }

func refused(format string, args ...any) *refusal { return &refusal{fmt.Sprintf(format, args...)} }

func (r *refusal) Error() string { return auth.ErrRefused.Error() + ": " + r.why }
func (r *refusal) Unwrap() error { return auth.ErrRefused }
