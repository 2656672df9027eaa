package broadcaster_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/commitcast/commitcast/auth"
	"github.com/commitcast/commitcast/broadcaster"
	"github.com/commitcast/commitcast/internal/testkit"
)

// panicky panics about one topic.
type panicky struct{}

func (panicky) Authorize(_ context.Context, _ *auth.Identity, topic string) error {
	if topic == "bad" {
		panic("authorizer")
	}
	return nil
}

// A panic while a client is served costs that client its connection, and nobody else anything.
func TestPanicCostsOneConnection(t *testing.T) {
	var said strings.Builder
	r := newRig(t, nil, broadcaster.Config{Verifier: plain{}, Authorizer: panicky{}, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	dial := func() *testkit.Client {
		c := open(t, r.URL, nil)
		c.Auth(plainToken("7", time.Hour, "**"))
		return c
	}
	other, bad := dial(), dial()
	other.Subscribe(1, "t", "")
	other.Expect("subscribed")
	bad.Subscribe(1, "bad", "")
	if m, err := bad.Read(10 * time.Second); err == nil {
		t.Errorf("the client is told %+v", m)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return r.b.Connections() == 1 }, "the connection is gone")
	r.commit("t", 1)
	other.ExpectEvents("t", 1, 1)
	r.stop()
	<-r.done
	if !strings.Contains(said.String(), "serving a client panicked") {
		t.Errorf("the log says %q", said.String())
	}
}
