package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/auth/token"
	"github.com/commitcast/commitcast/broadcaster"
)

// maxKeyFile bounds a file of keys, in bytes.
const maxKeyFile = 1 << 20

// authFlags say how clients are authenticated, and what they may read.
type authFlags struct {
	Auth           string        `env:"COMMITCAST_AUTH" placeholder:"MODE" help:"How clients are authenticated. 'jwt': by JSON Web Tokens. 'off': not at all, everybody may read every topic."`
	JWTAlg         []string      `name:"jwt-alg" env:"COMMITCAST_JWT_ALG" placeholder:"ALG" help:"Algorithms of tokens that are accepted: EdDSA, ES256, RS256, or HS256 alone."`
	JWTKeyFile     []string      `name:"jwt-key-file" env:"COMMITCAST_JWT_KEY_FILE" placeholder:"FILE" help:"Files with public keys in PEM, any number each, or with one secret of HS256 each. All are accepted, so that keys can be rotated."`
	JWKSURL        string        `name:"jwks-url" env:"COMMITCAST_JWKS_URL" placeholder:"URL" help:"Where the issuer publishes its keys (JWK Set). Read again when it is 5 minutes old, or a token names a key that is not in it."`
	JWTAudience    []string      `name:"jwt-audience" env:"COMMITCAST_JWT_AUDIENCE" placeholder:"AUD" help:"A token must name one of these as 'aud'. Required with --auth=jwt."`
	JWTIssuer      string        `name:"jwt-issuer" env:"COMMITCAST_JWT_ISSUER" placeholder:"ISS" help:"What 'iss' of a token must be (anything)."`
	JWTLeeway      time.Duration `name:"jwt-leeway" env:"COMMITCAST_JWT_LEEWAY" default:"10s" help:"By how much clocks may differ, at most 5m (${default})."`
	JWTTopicsClaim string        `name:"jwt-topics-claim" env:"COMMITCAST_JWT_TOPICS_CLAIM" default:"topics" placeholder:"CLAIM" help:"The claim that holds the patterns of topics which the token allows (${default})."`
	JWTNoSubject   bool          `name:"jwt-without-sub" env:"COMMITCAST_JWT_WITHOUT_SUB" help:"Accept tokens without 'sub'. All their connections count as one user's; see --max-connections-per-user."`
	AllowTopics    []string      `env:"COMMITCAST_ALLOW_TOPICS" placeholder:"PATTERN" help:"Topics that every good token allows besides, as patterns: market:*, user:{sub}."`
	AuthorizeURL   string        `name:"authorize-url" env:"COMMITCAST_AUTHORIZE_URL" placeholder:"URL" help:"A service that is asked about each topic, instead of going by the patterns of the token."`
	AuthorizeFile  string        `name:"authorize-bearer-file" env:"COMMITCAST_AUTHORIZE_BEARER_FILE" placeholder:"FILE" help:"A file with what that service gets as 'Authorization: Bearer'."`
	AuthorizeWait  time.Duration `name:"authorize-timeout" env:"COMMITCAST_AUTHORIZE_TIMEOUT" default:"1s" help:"How long it may take; then the topic is not allowed (${default})."`
	AuthorizeTTL   time.Duration `name:"authorize-ttl" env:"COMMITCAST_AUTHORIZE_TTL" default:"30s" help:"How long what it has allowed is remembered (${default})."`
	AllowPlainHTTP bool          `name:"allow-plain-http" env:"COMMITCAST_ALLOW_PLAIN_HTTP" help:"Let --jwks-url and --authorize-url be http:// on another machine, where something else encrypts what goes there."`
	AuthGrace      time.Duration `env:"COMMITCAST_AUTH_GRACE" default:"10s" help:"How long a session goes on after its token has expired, for a newer one to arrive (${default})."`
}

// check refuses to serve without authentication unless that was asked for.
func (f *authFlags) check() error {
	switch f.Auth {
	case "jwt":
	case "off":
		if len(f.JWTAlg) > 0 || len(f.JWTKeyFile) > 0 || f.JWKSURL != "" || len(f.AllowTopics) > 0 || f.AuthorizeURL != "" {
			return usageError{errors.New("--auth=off, and yet keys or topics of tokens: say which")}
		}
		return nil
	case "":
		return usageError{errors.New("say --auth=jwt and how tokens are checked (--jwt-alg, --jwt-key-file or --jwks-url, --jwt-audience), or --auth=off to serve clients without authentication")}
	default:
		return usageError{fmt.Errorf("--auth=%s: there are jwt and off", f.Auth)}
	}
	switch {
	case len(f.JWTAlg) == 0:
		return usageError{errors.New("--auth=jwt needs --jwt-alg: EdDSA, ES256, RS256 or HS256")}
	case len(f.JWTKeyFile) == 0 && f.JWKSURL == "":
		return usageError{errors.New("--auth=jwt needs --jwt-key-file or --jwks-url")}
	case len(f.JWTAudience) == 0:
		return usageError{errors.New("--auth=jwt needs --jwt-audience: a token for another service would be good here")}
	case f.JWTLeeway < 0 || f.JWTLeeway > token.MaxLeeway:
		return usageError{fmt.Errorf("--jwt-leeway=%v: must be 0 to %v", f.JWTLeeway, token.MaxLeeway)}
	case f.AuthGrace < 0 || f.AuthGrace > time.Hour:
		return usageError{fmt.Errorf("--auth-grace=%v: must be 0 to 1h", f.AuthGrace)}
	}
	switch {
	case f.AuthorizeURL == "" && f.AuthorizeFile != "":
		return usageError{errors.New("--authorize-bearer-file without --authorize-url")}
	case f.AuthorizeURL != "" && len(f.AllowTopics) > 0:
		return usageError{errors.New("--authorize-url decides alone: it cannot go with --allow-topics")}
	case f.AuthorizeWait <= 0 || f.AuthorizeWait > 10*time.Second:
		return usageError{fmt.Errorf("--authorize-timeout=%v: must be above 0, at most 10s", f.AuthorizeWait)}
	case f.AuthorizeTTL <= 0 || f.AuthorizeTTL > time.Hour:
		return usageError{fmt.Errorf("--authorize-ttl=%v: must be above 0, at most 1h", f.AuthorizeTTL)}
	}
	for _, text := range f.AllowTopics {
		if _, err := auth.ParsePattern(text); err != nil {
			return usageError{fmt.Errorf("--allow-topics: %w", err)}
		}
	}
	return nil
}

// configure gives a broadcaster what checks its clients.
func (f *authFlags) configure(c *broadcaster.Config, log *slog.Logger) error {
	if f.Auth == "off" {
		return nil
	}
	config := token.Config{Algorithms: f.JWTAlg, JWKSURL: f.JWKSURL, Audiences: f.JWTAudience, Issuer: f.JWTIssuer,
		Leeway: f.JWTLeeway, TopicsClaim: f.JWTTopicsClaim, NoSubject: f.JWTNoSubject, PlainHTTP: f.AllowPlainHTTP, Logger: log}
	if f.JWTLeeway == 0 {
		config.Leeway = -1 // none
	}
	for _, name := range f.JWTKeyFile {
		keys, err := readKeys(name, len(f.JWTAlg) == 1 && f.JWTAlg[0] == token.HS256)
		if err != nil {
			return usageError{fmt.Errorf("--jwt-key-file=%s: %w", name, err)}
		}
		config.Keys = append(config.Keys, keys...)
	}
	for _, text := range f.AllowTopics {
		p, err := auth.ParsePattern(text)
		if err != nil {
			return usageError{fmt.Errorf("--allow-topics: %w", err)}
		}
		config.Grants = append(config.Grants, p)
	}
	v, err := token.New(config)
	if err != nil {
		return usageError{err}
	}
	c.Verifier = v
	if f.AuthorizeURL == "" {
		return nil
	}
	hook := auth.WebhookConfig{URL: f.AuthorizeURL, PlainHTTP: f.AllowPlainHTTP, Timeout: f.AuthorizeWait, TTL: f.AuthorizeTTL, Logger: log, Registerer: c.Registerer}
	if f.AuthorizeFile != "" {
		text, err := readSmall(f.AuthorizeFile)
		if err != nil {
			return usageError{fmt.Errorf("--authorize-bearer-file=%s: %w", f.AuthorizeFile, err)}
		}
		hook.Bearer = strings.TrimSpace(string(text))
	}
	w, err := auth.NewWebhook(hook)
	if err != nil {
		return usageError{fmt.Errorf("--authorize-url: %w", err)}
	}
	c.Authorizer = w
	return nil
}

// readSmall reads a file of keys or secrets.
func readSmall(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err == nil && len(text) > maxKeyFile {
		err = fmt.Errorf("larger than %d bytes", maxKeyFile)
	}
	return text, err
}

func readKeys(name string, secret bool) ([]token.Key, error) {
	text, err := readSmall(name)
	if err != nil {
		return nil, err
	}
	if !secret {
		return token.ParsePublicKeys(text)
	}
	key, err := token.ParseSecret(text)
	return []token.Key{key}, err
}
