package canary

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/commitcast/commitcast/auth"
)

// Key is what the node itself signs in with where clients need a token: a random one that this process makes for itself, keeps in
// its memory, and says to nobody but its own listener. It allows one topic. Nobody else can have it, and it opens no way
// round the checks: it is looked for first, and everything else goes to the Verifier as before.
type Key struct {
	token string
	sum   [sha256.Size]byte
	who   *auth.Identity
}

// NewKey makes a key that allows a topic.
func NewKey(topic string) (*Key, error) {
	pattern, err := auth.ParsePattern(topic)
	if err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	k := &Key{token: "canary." + rand.Text() + rand.Text()}
	k.sum = sha256.Sum256([]byte(k.token))
	// A subject that no issuer gives to anybody: its limits and revocations are its own.
	k.who = &auth.Identity{Subject: "commitcast-canary-" + rand.Text(), Topics: []auth.Pattern{pattern}}
	return k, nil
}

// Verifier is v that knows the key, too.
func (k *Key) Verifier(v auth.Verifier) auth.Verifier { return keyVerifier{k, v} }

type keyVerifier struct {
	key  *Key
	next auth.Verifier
}

// Verify implements [auth.Verifier].
func (v keyVerifier) Verify(ctx context.Context, token string) (*auth.Identity, error) {
	sum := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(sum[:], v.key.sum[:]) == 1 {
		return v.key.who, nil
	}
	return v.next.Verify(ctx, token)
}

// Authorizer is a that decides about everybody but the bearer of the key, whom the key's own topic is allowed. Nil, which goes
// by what tokens say, stays nil: so does the key.
func (k *Key) Authorizer(a auth.Authorizer) auth.Authorizer {
	if a == nil {
		return nil
	}
	return keyAuthorizer{k, a}
}

type keyAuthorizer struct {
	key  *Key
	next auth.Authorizer
}

// Authorize implements [auth.Authorizer].
func (a keyAuthorizer) Authorize(ctx context.Context, who *auth.Identity, topic string) error {
	if who == a.key.who { // the one value that Verify gives: what a token claims does not come here
		return auth.Claims{}.Authorize(ctx, who, topic)
	}
	return a.next.Authorize(ctx, who, topic)
}
