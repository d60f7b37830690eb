// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A Space is a namespace of a test's own, which goes with the test.
type Space struct {
	*Platform
	Name string
	t    testing.TB
}

// Space makes a namespace and waits until pods can be made in it.
func (p *Platform) Space(t testing.TB, name string) *Space {
	t.Helper()
	s := &Space{Platform: p, Name: name, t: t}
	if out, err := p.Kubectl(t.Context(), "create", "namespace", name); err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			pods, _ := p.Kubectl(ctx, "-n", name, "get", "pod", "-o", "wide")
			events, _ := p.Kubectl(ctx, "-n", name, "get", "event", "--sort-by=.lastTimestamp")
			t.Logf("in namespace %s:\n%s\n%s", name, pods, events)
		}
		_, _ = p.Kubectl(ctx, "delete", "namespace", name, "--wait=false")
	})
	s.K("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	return s
}

// For is the space in a test of its own within the one that it was made for.
func (s *Space) For(t testing.TB) *Space { return &Space{Platform: s.Platform, Name: s.Name, t: t} }

// Try runs kubectl in the namespace and returns what it printed; when it fails,
// what it complained of as well.
func (s *Space) Try(args ...string) (string, error) {
	cmd := s.Command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		all := out.String() + errs.String()
		return all, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, all)
	}
	return out.String(), nil
}

// K runs kubectl in the namespace, and the test fails if kubectl does.
func (s *Space) K(args ...string) string {
	s.t.Helper()
	out, err := s.Try(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// Make applies a manifest in the namespace.
func (s *Space) Make(yaml string) string {
	s.t.Helper()
	out, err := s.TryMake(yaml)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// TryMake applies a manifest that may be refused.
func (s *Space) TryMake(yaml string) (string, error) {
	cmd := s.Command("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	return finish(cmd)
}

// Command is kubectl in the namespace, for a test that needs its streams.
func (s *Space) Command(args ...string) *exec.Cmd {
	return s.command(s.t.Context(), "kubectl", append([]string{"-n", s.Name}, args...)...)
}

// Ready waits for the condition Ready of pods.
func (s *Space) Ready(pods ...string) {
	s.t.Helper()
	for _, pod := range pods {
		s.K("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
	}
}

// Field is one field of an object, by JSONPath.
func (s *Space) Field(object, path string) string {
	s.t.Helper()
	return s.K("get", object, "-o", "jsonpath={"+path+"}")
}

// Becomes waits until a field has a value.
func (s *Space) Becomes(object, path, want string) {
	s.t.Helper()
	Eventually(s.t, time.Minute, func() error {
		got, err := s.Try("get", object, "-o", "jsonpath={"+path+"}")
		if err == nil && got != want {
			err = fmt.Errorf("%s %s is %q, want %q", object, path, got, want)
		}
		return err
	})
}

// Says waits until kubectl's output has all texts.
func (s *Space) Says(wants []string, args ...string) string {
	s.t.Helper()
	var out string
	Eventually(s.t, time.Minute, func() (err error) {
		out, err = s.Try(args...)
		for _, want := range wants {
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("%q is missing in:\n%s", want, out)
			}
		}
		return err
	})
	return out
}

// LoadImage loads an archive or a layout into the platform.
func (p *Platform) LoadImage(path string) error {
	_, err := p.Sonagi(context.Background(), "image", "load", path)
	return err
}
