package client

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
