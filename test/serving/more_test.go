// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

func TestReadinessProbeDecides(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "probe")
	s.apply(ksvc{name: "never", notes: "serving.knative.dev/progress-deadline: 6s", box: "readinessProbe: {httpGet: {path: '/?status=500'}, periodSeconds: 1}"})
	s.serve(ksvc{name: "slow", env: map[string]string{"START_DELAY": "3s"}, box: "readinessProbe: {httpGet: {path: /}, periodSeconds: 1}"})
	if got := s.get("slow", "/"); got != "slow-00001" {
		t.Errorf("answer %q", got)
	}
	s.Becomes("revision/never-00001", `.status.conditions[?(@.type=="Ready")].reason`, "ProgressDeadlineExceeded")
	s.Becomes("revision/never-00001", `.status.conditions[?(@.type=="Ready")].status`, "False")
}

func TestContainerExitsLater(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "later")
	s.serve(ksvc{name: "web", notes: "autoscaling.knative.dev/min-scale: '1'"})
	pod := strings.TrimSpace(s.K("get", "pod", "-l", "serving.knative.dev/service=web", "-o", "name"))
	s.K("delete", pod, "--wait=false")
	s.many("web", "/", 20, 2)
	s.pods("web", 1, platformLimit)
	s.ready("web")
}

func TestRuntimeContract(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "contract")
	s.serve(ksvc{name: "web", box: "ports: [{containerPort: 8888}]"})
	about := s.get("web", "/about")
	wantAll(t, about, `"PORT=8888"`, `"K_SERVICE=web"`, `"K_CONFIGURATION=web"`, `"K_REVISION=web-00001"`)
	if strings.Contains(about, "KUBERNETES_SERVICE_PORT_HTTPS") && strings.Contains(about, "WEB_SERVICE_HOST") {
		t.Error("service links are in the environment")
	}
}

func TestNewRevisionOnlyWhenTemplateChanges(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "same")
	s.serve(ksvc{name: "web"})
	s.serve(ksvc{name: "web", labels: "team: red"})
	s.serve(ksvc{name: "web", labels: "team: red", traffic: "{latestRevision: true, percent: 100, tag: now}"})
	if got := s.Field("ksvc/web", ".status.latestCreatedRevisionName"); got != "web-00001" {
		t.Errorf("latest created is %q", got)
	}
	if got := s.Field("configuration/web", ".metadata.generation"); got != "1" {
		t.Errorf("the configuration has generation %s", got)
	}
	s.Becomes("route/web", ".metadata.labels.team", "red")
	if got := s.get("now-web", "/"); got != "web-00001" {
		t.Errorf("answer %q", got)
	}
}

func TestConfigurationAndRouteByThemselves(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "apart")
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: one}\nspec: {template: {spec: {containers: [{image: " + p.App() + "}]}}}\n")
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Route\nmetadata: {name: way}\nspec: {traffic: [{configurationName: one, percent: 100}]}\n")
	s.K("wait", "route/way", "--for=condition=Ready", "--timeout=60s")
	if got := s.get("way", "/"); got != "one-00001" {
		t.Errorf("answer %q", got)
	}
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Route\nmetadata: {name: lost}\nspec: {traffic: [{configurationName: none, percent: 100}]}\n")
	s.condition("route/lost", "Ready", "False", "ConfigurationMissing", `Configuration "none" referenced in traffic not found.`)
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: none}\nspec: {template: {spec: {containers: [{image: " + p.App() + "}]}}}\n")
	s.K("wait", "route/lost", "--for=condition=Ready", "--timeout=60s")
	s.K("delete", "route", "way")
	platform.Eventually(t, platformLimit, func() error {
		if status, _, err := p.Get(t.Context(), s.host("way"), "/"); status != http.StatusNotFound || err != nil {
			return fmt.Errorf("%d, %v", status, err)
		}
		return nil
	})
	s.Becomes("revision/one-00001", ".metadata.labels.serving\\.knative\\.dev/routingState", "reserve")
}

func TestFullQueue(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "full")
	s.serve(ksvc{name: "web", spec: "containerConcurrency: 1", notes: "autoscaling.knative.dev/target-burst-capacity: '0', autoscaling.knative.dev/min-scale: '1', autoscaling.knative.dev/max-scale: '1'"})
	got := s.many("web", "/?wait=700ms", 20, 20)
	full := 0
	for answer, n := range got {
		if strings.HasPrefix(answer, "503") {
			full += n
		} else if answer != "web-00001" {
			t.Errorf("answer %q", answer)
		}
	}
	// One runs and ten wait; a few more come in when those are done.
	if full < 5 || got["web-00001"] < 11 {
		t.Errorf("20 at once, of which 11 find a place: %v", got)
	}
}

func TestFailureIsTold(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "told")
	s.apply(ksvc{name: "web", env: map[string]string{"EXIT": "1"}})
	out := s.Says([]string{`Latest created revision "web-00001" has failed`}, "get", "event")
	if !regexp.MustCompile(`Warning +LatestCreatedFailed +configuration/web`).MatchString(out) {
		t.Errorf("events: %s", out)
	}
}
