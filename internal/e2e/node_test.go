package e2e

import (
	"testing"

	"github.com/commitcast/commitcast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

type node = testkit.Node

var (
	start, run, command = testkit.Start, testkit.Run, testkit.Command
	startOf, commandOf  = testkit.StartOf, testkit.CommandOf // another version of the binary
)
