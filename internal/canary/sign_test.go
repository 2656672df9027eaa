package canary

import (
	"context"
	"errors"
	"testing"

	"github.com/commitcast/commitcast/auth"
)

type refuses struct{ asked int }

func (r *refuses) Verify(context.Context, string) (*auth.Identity, error) {
	r.asked++
	return nil, auth.ErrRefused
}

func (r *refuses) Authorize(context.Context, *auth.Identity, string) error {
	r.asked++
	return auth.ErrForbidden
}

// The key lets its bearer read one topic, and nobody else anything: not another key, not what looks like it, not a token that claims its
// subject.
func TestKeyOpensOneTopic(t *testing.T) {
	const topic = "commitcast/canary"
	key, err := NewKey(topic)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewKey(topic)
	if err != nil {
		t.Fatal(err)
	}
	next := new(refuses)
	v, a := key.Verifier(next), key.Authorizer(next)
	for _, token := range []string{"", other.token, key.token + " ", key.token[:len(key.token)-1], key.who.Subject} {
		if who, err := v.Verify(t.Context(), token); !errors.Is(err, auth.ErrRefused) || who != nil {
			t.Errorf("%q is let in", token)
		}
	}
	if next.asked != 5 {
		t.Errorf("the next was asked %d times, not 5", next.asked)
	}
	who, err := v.Verify(t.Context(), key.token)
	if err != nil {
		t.Fatal(err)
	}
	next.asked = 0
	if err := a.Authorize(t.Context(), who, topic); err != nil || next.asked > 0 {
		t.Errorf("its own topic: %v", err)
	}
	for _, topic := range []string{"market:1", "commitcast/canary2", "commitcast/canary/x", "commitcast"} {
		if a.Authorize(t.Context(), who, topic) == nil || (auth.Claims{}).Authorize(t.Context(), who, topic) == nil {
			t.Errorf("it may read %s", topic)
		}
	}
	claims := *who
	if a.Authorize(t.Context(), &claims, topic) == nil || next.asked != 1 {
		t.Error("who says the same is not decided about by others")
	}
	if key.Authorizer(nil) != nil {
		t.Error("deciding by claims has become something else, which is asked at each renewal")
	}
}
