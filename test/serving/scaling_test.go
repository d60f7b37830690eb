// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

const (
	platformLimit = time.Minute
	window        = "autoscaling.knative.dev/window: 6s"
)

func TestZeroAndBack(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "zero")
	s.serve(ksvc{name: "web", notes: window})
	s.get("web", "/")
	asked := time.Now()
	s.pods("web", 0, platformLimit)
	if took := time.Since(asked); took < 5*time.Second || took > 40*time.Second {
		t.Errorf("at zero after %s, with a window of 6 s", took)
	}
	s.condition("kpa/web-00001", "Active", "False", "NoTraffic", "The target is not receiving traffic.")
	s.condition("revision/web-00001", "Active", "False", "NoTraffic", "The target is not receiving traffic.")
	s.condition("ksvc/web", "Ready", "True", "", "")
	for range 3 {
		if got := s.get("web", "/"); got != "web-00001" {
			t.Errorf("answer %q", got)
		}
		s.condition("revision/web-00001", "Active", "True", "", "")
		s.pods("web", 0, platformLimit)
	}
}

func TestMinMaxAndInitialScale(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "bounds")
	s.serve(ksvc{name: "least", notes: window + ", autoscaling.knative.dev/min-scale: '2'"})
	s.pods("least", 2, platformLimit)
	s.Becomes("revision/least-00001", ".status.desiredReplicas", "2")
	s.Becomes("kpa/least-00001", ".status.actualScale", "2")
	s.serve(ksvc{name: "most", notes: window + ", autoscaling.knative.dev/max-scale: '2', autoscaling.knative.dev/target: '1'"})
	load(t, s.host("most"), "/?wait=200ms", 8)
	s.pods("most", 2, platformLimit)
	s.apply(ksvc{name: "first", notes: window + ", autoscaling.knative.dev/initial-scale: '3'"})
	s.pods("first", 3, platformLimit)
	s.ready("first")
	s.pods("first", 0, platformLimit)
	out, err := s.TryMake(ksvc{name: "none", notes: "autoscaling.knative.dev/initial-scale: '0'"}.yaml())
	if err == nil {
		t.Error("initial-scale 0 was taken although it is not allowed")
	}
	wantAll(t, out, "initial-scale=0 not allowed by cluster")
	if n, out, _ := s.count("most"); n != 2 {
		t.Errorf("max-scale 2: %s", out)
	}
}

// load asks a service until the test ends.
func load(t *testing.T, host, path string, clients int) *platform.Load {
	l := p.Load(host, path, clients)
	t.Cleanup(func() {
		if failed := l.Stop().Failed(); len(failed) > 0 {
			t.Errorf("under load: %s", failed)
		}
	})
	return l
}

func TestConcurrencyTarget(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "concurrency")
	s.serve(ksvc{name: "web", notes: window + ", autoscaling.knative.dev/target: '2', autoscaling.knative.dev/target-utilization-percentage: '100'"})
	l := p.Load(s.host("web"), "/?wait=500ms", 8)
	s.pods("web", 4, platformLimit)
	if failed := l.Stop().Failed(); len(failed) > 0 {
		t.Error(failed)
	}
	s.pods("web", 0, platformLimit)
}

func TestRequestsPerSecondTarget(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "rps")
	s.serve(ksvc{name: "web", notes: window + ", autoscaling.knative.dev/metric: rps, autoscaling.knative.dev/target: '10', autoscaling.knative.dev/target-utilization-percentage: '100', autoscaling.knative.dev/max-scale: '3'"})
	load(t, s.host("web"), "/?wait=100ms", 8) // 70 or so in a second
	s.pods("web", 3, platformLimit)
}

func TestContainerConcurrencyIsExact(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "exact")
	s.serve(ksvc{name: "web", spec: "containerConcurrency: 2", notes: "autoscaling.knative.dev/min-scale: '1', autoscaling.knative.dev/max-scale: '1'"})
	got := s.many("web", "/?wait=50ms", 60, 12)
	if got["web-00001"] != 60 {
		t.Errorf("answers %v", got)
	}
	if peak := s.get("web", "/?peak"); peak != "2" {
		t.Errorf("%s requests at a time in a pod, want 2", peak)
	}
}

func TestScaleDownDelay(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "delay")
	s.serve(ksvc{name: "quick", notes: window})
	s.serve(ksvc{name: "slow", notes: window + ", autoscaling.knative.dev/scale-down-delay: 20s"})
	s.get("quick", "/")
	s.get("slow", "/")
	asked := time.Now()
	s.pods("quick", 0, platformLimit)
	if n, _, _ := s.count("slow"); n != 1 {
		t.Errorf("the delayed one has %d pods when the other has none", n)
	}
	s.pods("slow", 0, platformLimit)
	if took := time.Since(asked); took < 20*time.Second {
		t.Errorf("at zero after %s in spite of a delay of 20 s", took)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "retention")
	s.serve(ksvc{name: "web", notes: window + ", autoscaling.knative.dev/scale-to-zero-pod-retention-period: 15s"})
	s.get("web", "/")
	asked := time.Now()
	s.pods("web", 0, platformLimit)
	if took := time.Since(asked); took < 15*time.Second {
		t.Errorf("at zero after %s in spite of a retention of 15 s", took)
	}
}

func TestActivationScale(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "activation")
	s.serve(ksvc{name: "web", notes: window + ", autoscaling.knative.dev/activation-scale: '3'"})
	s.pods("web", 0, platformLimit)
	s.get("web", "/")
	s.pods("web", 3, 10*time.Second)
}

func TestGivingUpAtZero(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "held")
	s.serve(ksvc{name: "web", notes: window})
	s.pods("web", 0, platformLimit)
	// A client that gives up at zero leaves no pod that nobody needs.
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, _, _ = p.Get(ctx, s.host("web"), "/")
	s.pods("web", 0, platformLimit)
	if got := s.get("web", "/"); got != "web-00001" {
		t.Errorf("answer %q", got)
	}
}

func TestGarbageCollection(t *testing.T) {
	s := newSpace(t, "gc")
	s.serve(ksvc{name: "web", env: map[string]string{"RESPONSE": "1"}})
	for i := 2; i <= 5; i++ {
		s.serve(ksvc{name: "web", env: map[string]string{"RESPONSE": fmt.Sprint(i)}})
	}
	if out := s.K("get", "revision", "-o", "name"); strings.Count(out, "\n") != 5 {
		t.Fatalf("five revisions: %s", out)
	}
	set(t, "config-gc", map[string]string{"retain-since-create-time": "disabled", "retain-since-last-active-time": "disabled", "min-non-active-revisions": "0", "max-non-active-revisions": "1"})
	platform.Eventually(t, platformLimit, func() error {
		out, err := s.Try("get", "revision", "-o", "name")
		if err == nil && out != "revision.serving.knative.dev/web-00004\nrevision.serving.knative.dev/web-00005\n" {
			err = fmt.Errorf("revisions: %s", out)
		}
		return err
	})
	if got := s.get("web", "/"); got != "5" {
		t.Errorf("answer %q", got)
	}
}

func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "timeout")
	s.serve(ksvc{name: "web", spec: "timeoutSeconds: 1"})
	status, body, err := p.Get(t.Context(), s.host("web"), "/?wait=5s")
	if err != nil || status != http.StatusGatewayTimeout || !strings.Contains(body, "request timeout") {
		t.Errorf("%d %q, %v", status, body, err)
	}
}
