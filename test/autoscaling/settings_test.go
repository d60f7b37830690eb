// SPDX-License-Identifier: Apache-2.0

package autoscaling

import (
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

// What Knative's webhook refuses is refused here, in its words.
func TestAnnotationsAreValidated(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "invalid")
	for _, tt := range []struct {
		notes []string
		want  string
	}{
		{[]string{"window", "5s"}, "expected 6s <= 5s <= 1h0m0s: "},
		{[]string{"window", "2h"}, "expected 6s <= 2h <= 1h0m0s: "},
		{[]string{"window", "6500ms"}, "must be specified with at most second precision: "},
		{[]string{"target", "0.001"}, "target 0.001 should be at least 0.01: "},
		{[]string{"target-utilization-percentage", "0"}, "expected 1 <= 0 <= 100: "},
		{[]string{"target-burst-capacity", "-2"}, "invalid value: -2: "},
		{[]string{"panic-window-percentage", "0.5"}, "expected 1 <= 0.5 <= 100: "},
		{[]string{"panic-threshold-percentage", "100"}, "expected 110 <= 100 <= 1000: "},
		{[]string{"activation-scale", "1"}, "activation-scale=1 must be greater than 1: "},
		{[]string{"min-scale", "3", "max-scale", "2"}, "max-scale=2 is less than min-scale=3: "},
		{[]string{"min-scale", "-1"}, "expected 0 <= -1 <= 2147483647: "},
		{[]string{"initial-scale", "-1"}, "invalid value: -1: "},
		{[]string{"scale-down-delay", "2h"}, "expected 0s <= 2h <= 1h0m0s: "},
		{[]string{"scale-to-zero-pod-retention-period", "-1s"}, "expected 0s <= -1s <= 1h0m0s: "},
		{[]string{"metric", "memory"}, "invalid value: memory: "},
		{[]string{"class", "other.autoscaling.knative.dev"}, "invalid value: other.autoscaling.knative.dev: "},
		{[]string{"class", "hpa.autoscaling.knative.dev", "metric", ""}, "invalid value: "},
	} {
		out, err := s.TryMake(manifest("web", "", "", tt.notes...))
		if err == nil || !strings.Contains(out, "validation failed: "+tt.want) {
			t.Errorf("%v: %v\n%s", tt.notes, err, out)
		}
		if err == nil {
			s.K("delete", "ksvc", "web")
		}
	}
}

// The annotations of a revision hold from the moment they are changed.
func TestAnnotationsChangeLive(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "live")
	s.serve("web", "", "", "window", "6s")
	note := func(note string) { s.K("annotate", "revision", "web-00001", "--overwrite", prefix+note) }
	note("min-scale=3")
	s.pods("web", 3, limit)
	note("max-scale=3")
	note("min-scale=1")
	s.pods("web", 1, limit)
	note("min-scale-")
	s.pods("web", 0, limit)
}

// These change settings of all services, and so come one by one, before the others.
func TestSettingsChangeLive(t *testing.T) {
	s := newSpace(t, "settings")
	set(t, map[string]string{"stable-window": "6s"})
	s.serve("web", "", "")
	s.pods("web", 0, limit)
	t.Run("min-scale", func(t *testing.T) {
		set(t, map[string]string{"min-scale": "2"})
		s.pods("web", 2, limit)
	})
	s.pods("web", 0, limit)
	t.Run("max-scale and target", func(t *testing.T) {
		set(t, map[string]string{"max-scale": "2", "container-concurrency-target-default": "1", "container-concurrency-target-percentage": "100"})
		l := p.Load(s.host("web"), "/?wait=200ms", 6)
		s.pods("web", 2, limit)
		reach(t, l, 60)
		if n, out, _ := s.count("web"); n != 2 {
			t.Errorf("max-scale 2: %s", out)
		}
		patch(t.Context(), t, map[string]string{"max-scale": "4"})
		s.pods("web", 4, limit)
		if failed := l.Stop().Failed(); len(failed) > 0 {
			t.Error(failed)
		}
	})
	t.Run("enable-scale-to-zero", func(t *testing.T) {
		set(t, map[string]string{"enable-scale-to-zero": "false"})
		s.pods("web", 1, limit)
		// One that may go does so within the window and a decision.
		for since := time.Now(); time.Since(since) < 12*time.Second; {
			if n, out, err := s.count("web"); n != 1 || err != nil {
				t.Fatalf("pods: %s, %v", out, err)
			}
		}
	})
	s.pods("web", 0, limit)
	t.Run("pod-autoscaler-class", func(t *testing.T) {
		// It is for revisions that are made from then on.
		set(t, map[string]string{"pod-autoscaler-class": hpa})
		s.serve("other", "", "")
		s.Becomes("podautoscaler/other-00001", `.metadata.annotations.autoscaling\.knative\.dev/class`, hpa)
		s.Becomes("podautoscaler/other-00001", `.metadata.annotations.autoscaling\.knative\.dev/metric`, "cpu")
		s.K("wait", "--for=create", "hpa/other-00001", "--timeout=60s")
		s.Becomes("podautoscaler/web-00001", `.metadata.annotations.autoscaling\.knative\.dev/class`, "kpa.autoscaling.knative.dev")
		s.K("delete", "ksvc", "other")
	})
	t.Run("max-scale-limit", func(t *testing.T) {
		set(t, map[string]string{"max-scale-limit": "5", "max-scale": "3"})
		platform.Eventually(t, limit, func() error {
			out, err := s.TryMake(manifest("more", "", "", "max-scale", "6"))
			if err == nil || !strings.Contains(out, "expected 1 <= 6 <= 5: ") {
				return &notYet{out}
			}
			return nil
		})
		if out, err := s.TryMake(manifest("more", "", "", "max-scale", "0")); err == nil || !strings.Contains(out, "max-scale=0 (unlimited), must be less than 5: ") {
			t.Error(out)
		}
	})
	t.Run("scale-to-zero-pod-retention-period", func(t *testing.T) {
		set(t, map[string]string{"scale-to-zero-pod-retention-period": "14s"})
		if status, body, err := s.request("web", "/"); status != 200 {
			t.Fatal(status, body, err)
		}
		asked := time.Now()
		s.pods("web", 0, limit)
		if took := time.Since(asked); took < 14*time.Second {
			t.Errorf("at zero after %s in spite of a retention of 14 s", took)
		}
	})
}

type notYet struct{ out string }

func (n *notYet) Error() string { return "not refused yet: " + n.out }

// reach waits until a load has so many more answers.
func reach(t *testing.T, l *platform.Load, n int) {
	t.Helper()
	n += l.Count()
	platform.Eventually(t, limit, func() error {
		if l.Count() < n {
			return &notYet{"answers"}
		}
		return nil
	})
}
