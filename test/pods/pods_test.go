// SPDX-License-Identifier: Apache-2.0

// Package pods holds what people do with plain Kubernetes pods, with kubectl.
package pods

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
	"github.com/sonagi/sonagi/test/shell"
)

const image = "shell.local/shell:test"

var p *platform.Platform

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // the tests wait more than they work
	os.Exit(platform.Main(loaded{m}, &p))
}

// loaded loads the image before the first test.
type loaded struct{ *testing.M }

func (l loaded) Run() int {
	if err := load(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return l.M.Run()
}

func load() error {
	file := filepath.Join(filepath.Dir(p.DataDir), "shell.tar")
	if err := shell.Archive(file, image); err != nil {
		return err
	}
	return p.LoadImage(file)
}

func wantAll(t testing.TB, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("%s is %q, want %q", what, got, want)
	}
}

// pod is a manifest of a pod with one container "main"; more is further fields of the container, one a line.
func pod(name, command string, more ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: %s
    command: ["sh", "-c", %q]
`, name, image, command) + indent(4, more)
}

// spec adds fields of the pod to a manifest that pod has made.
func spec(manifest string, lines ...string) string { return manifest + indent(2, lines) }

func indent(n int, lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(strings.Repeat(" ", n) + l + "\n")
	}
	return b.String()
}

// done waits until a pod has succeeded and returns what it said.
func done(s *platform.Space, name string) string {
	s.K("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+name, "--timeout=60s")
	return s.K("logs", name, "-c", "main")
}
