package commitcast_test

import (
	"os/exec"
	"testing"
)

// Kustomize, the types of Kubernetes, compose and BuildKit read the files of ops/deploy that are for them.
func TestDeployFilesAreRead(t *testing.T) {
	cmd := exec.Command("go", "run", ".")
	cmd.Dir = "ops/deploy/check"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
