// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Tool is the image of the program that scenarios put into pods; DeployTool builds it.
func (p *Platform) Tool() string { return p.Registry + "/tool" }

// DeployTool builds the tool, and runs it as a service of that name in the default namespace.
func (p *Platform) DeployTool(ctx context.Context, service string) error {
	build := p.command(ctx, p.Bin(), "deploy", filepath.Join(p.Root, "test", "platform", "testdata", "tool"), "--name", "tool", "--data-dir", p.DataDir)
	build.Env = os.Environ() // with the home directory, where Go's build cache is
	if _, err := finish(build); err != nil {
		return err
	}
	return p.Serve(ctx, service, 0)
}

// Serve makes a Knative service of the tool, that answers with its own name,
// with at least so many pods, and waits until it is ready.
func (p *Platform) Serve(ctx context.Context, service string, atLeast int) error {
	_, err := p.Apply(ctx, fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/min-scale: "%d", autoscaling.knative.dev/window: 6s}}
    spec:
      containers: [{image: %s, env: [{name: RESPONSE, value: %s}]}]
`, service, atLeast, p.Tool(), service))
	if err != nil {
		return err
	}
	_, err = p.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=90s", "ksvc/"+service)
	return err
}

// Pod runs the tool in a pod that behaves as the words say. The rest is YAML of
// the container, and then of the pod.
func (p *Platform) Pod(ctx context.Context, name, behaves, container, pod string) error {
	words := `"` + strings.Join(strings.Fields(behaves), `", "`) + `"`
	_, err := p.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {scenario: %s}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: tool
    image: %s
    args: [%s]
%s
%s
`, name, name, p.Tool(), words, indent(container, 4), indent(pod, 2)))
	return err
}

func indent(text string, by int) string {
	return strings.Repeat(" ", by) + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+strings.Repeat(" ", by))
}
