// Check has the programs that will read the files of ops/deploy read them, as far as they are Go: Kustomize builds the base, the
// types of Kubernetes take every manifest and nothing else, compose loads its file by its schema, BuildKit parses the Dockerfile.
//
//	cd ops/deploy/check && go run .
//
// It is a module of its own, so that nothing of all this is a dependency of Commitcast.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kinds are what the base may hold.
var kinds = map[string]func() any{
	"v1/ConfigMap":                           func() any { return new(core.ConfigMap) },
	"v1/Service":                             func() any { return new(core.Service) },
	"v1/ServiceAccount":                      func() any { return new(core.ServiceAccount) },
	"apps/v1/Deployment":                     func() any { return new(apps.Deployment) },
	"batch/v1/Job":                           func() any { return new(batch.Job) },
	"policy/v1/PodDisruptionBudget":          func() any { return new(policy.PodDisruptionBudget) },
	"networking.k8s.io/v1/NetworkPolicy":     func() any { return new(networking.NetworkPolicy) },
	"autoscaling/v2/HorizontalPodAutoscaler": func() any { return new(autoscaling.HorizontalPodAutoscaler) },
	"monitoring.coreos.com/v1/PodMonitor":    func() any { return new(monitoring.PodMonitor) },
}

func main() {
	failed := false
	for name, check := range map[string]func() error{"kubernetes": kubernetes, "compose": compose, "container": container} {
		if err := check(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func kubernetes() error {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "../kubernetes")
	if err != nil {
		return err
	}
	for _, r := range built.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			return err
		}
		kind := r.GetApiVersion() + "/" + r.GetKind()
		make, ok := kinds[kind]
		if !ok {
			return fmt.Errorf("%s is of a kind that is not checked: %s", r.GetName(), kind)
		}
		object := make()
		if err := yaml.UnmarshalStrict(text, object); err != nil {
			return fmt.Errorf("%s %s: %w", kind, r.GetName(), err)
		}
		if d, ok := object.(*apps.Deployment); ok {
			if err := deployment(d); err != nil {
				return fmt.Errorf("%s %s: %w", kind, r.GetName(), err)
			}
		}
	}
	return nil
}

// deployment is what the types cannot tell.
func deployment(d *apps.Deployment) error {
	pod := d.Spec.Template.Spec
	for _, c := range pod.Containers {
		if pod.SecurityContext == nil || pod.SecurityContext.RunAsNonRoot == nil || !*pod.SecurityContext.RunAsNonRoot ||
			c.SecurityContext == nil || c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
			return fmt.Errorf("container %s may be root, or write", c.Name)
		}
		if c.LivenessProbe == nil || c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet.Path != "/readyz" {
			return fmt.Errorf("container %s is not asked at /healthz and /readyz", c.Name)
		}
	}
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[k] != v {
			return fmt.Errorf("its selector does not match its pods: %s", k)
		}
	}
	return nil
}

func compose() error {
	options, err := cli.NewProjectOptions([]string{"../compose/compose.yaml"})
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err == nil && len(project.Services) != 5 {
		err = fmt.Errorf("%d services, want 5", len(project.Services))
	}
	return err
}

func container() error {
	text, err := os.ReadFile("../container/Dockerfile")
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return err
	}
	last := stages[len(stages)-1]
	user := ""
	for _, c := range last.Commands {
		if u, ok := c.(*instructions.UserCommand); ok {
			user = u.User
		}
	}
	if last.BaseName != "scratch" || user != "65534:65534" {
		return fmt.Errorf("the last stage is from %s as %q; it must be from scratch, as nobody", last.BaseName, user)
	}
	return nil
}
