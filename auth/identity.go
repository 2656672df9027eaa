package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/commitcast/commitcast/wire"
)

// MaxToken is the longest token, in bytes: it fits into one message of a client.
const MaxToken = wire.MaxClientFrame

// Identity is what a verified token says. It is never changed.
type Identity struct {
	// Subject is who the client is; "" if the token does not say: all such count as one.
	Subject string
	// Expires is when the token is accepted for the last time; zero: it does not expire.
	Expires time.Time
	// Topics are the patterns of the topics that may be read, with every {claim} filled in.
	Topics []Pattern
	// Claims is all that the token says, as JSON: for an [Authorizer] that wants to know more.
	Claims []byte
}

// Verifier checks tokens. Safe for concurrent use.
type Verifier interface {
	// Verify returns what a token says. The error wraps [ErrRefused] if the token is not good; any other means that this
	// cannot be decided now. Neither holds the token, nor a part of it. ctx bounds it.
	Verify(ctx context.Context, token string) (*Identity, error)
}

// Authorizer decides about topics. Safe for concurrent use.
type Authorizer interface {
	// Authorize returns nil if the topic may be read. The error wraps [ErrForbidden] if not; any other means that this
	// cannot be decided now, and the topic is not read either. ctx bounds it.
	Authorize(ctx context.Context, who *Identity, topic string) error
}

var (
	// ErrRefused is what errors about bad tokens wrap: another token is needed.
	ErrRefused = errors.New("token refused")
	// ErrForbidden is what errors about topics wrap that the client may not read.
	ErrForbidden = errors.New("forbidden")
)

// Claims is the [Authorizer] that goes by what the token itself holds: Identity.Topics.
type Claims struct{}

// Authorize allows a topic that one of the patterns matches.
func (Claims) Authorize(_ context.Context, who *Identity, topic string) error {
	for _, p := range who.Topics {
		if p.Match(topic) {
			return nil
		}
	}
	return fmt.Errorf("%w: the token does not allow %q", ErrForbidden, topic)
}
