// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

// TestProbesDecideWhenItIsReady has apps that are well only after a while, and
// each kind of probe find that out soon after, however its period is given.
func TestProbesDecideWhenItIsReady(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "probes")
	const late = "2s"
	well, listens := map[string]string{"READY_DELAY": late}, map[string]string{"START_DELAY": late}
	for _, tt := range []struct {
		name string
		env  map[string]string
		box  string
	}{
		{"by-default", listens, ""},
		{"tcp", listens, "readinessProbe: {tcpSocket: {}}"},
		{"tcp-period", listens, "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}"},
		{"http", well, "readinessProbe: {httpGet: {path: /health}}"},
		{"http-period", well, "readinessProbe: {httpGet: {path: /health}, periodSeconds: 1, failureThreshold: 2}"},
		{"http-named", well, "ports: [{name: http1, containerPort: 8080}]\nreadinessProbe: {httpGet: {path: /health, port: http1}}"},
		{"http-headers", well, "readinessProbe: {httpGet: {path: /health, httpHeaders: [{name: X-Own, value: yes-sir}]}}"},
		{"http-twice", well, "readinessProbe: {httpGet: {path: /health}, successThreshold: 2}"},
		{"exec", well, "readinessProbe: {exec: {command: [/ko-app/app, get, 'http://localhost:8080/health']}}"},
		{"exec-period", well, "readinessProbe: {exec: {command: [/ko-app/app, get, 'http://localhost:8080/health']}, periodSeconds: 1}"},
		{"startup", well, "startupProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, failureThreshold: 20}"},
		{"grpc", map[string]string{"READY_DELAY": late, "MODE": "grpc"}, "ports: [{name: h2c, containerPort: 8080}]\nreadinessProbe: {grpc: {}}"},
		{"grpc-period", map[string]string{"READY_DELAY": late, "MODE": "grpc"}, "ports: [{name: h2c, containerPort: 8080}]\nreadinessProbe: {grpc: {port: 8080}, periodSeconds: 1}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := s.For(t)
			begun := time.Now()
			s.Serves(platform.Service{Name: tt.name, Env: tt.env, Box: tt.box})
			if took := time.Since(begun); took < 2*time.Second {
				t.Errorf("ready after %s, before the app was", took)
			}
			if strings.HasPrefix(tt.name, "grpc") {
				return
			}
			if got := s.Answer(tt.name, "/"); got != tt.name+"-00001" {
				t.Errorf("answer %q", got)
			}
			var seen struct {
				Noticed int64 // ms after it was well
				Header  http.Header
			}
			s.Tells(tt.name, "/probed", &seen)
			if tt.env["READY_DELAY"] != "" && seen.Noticed > 1500 {
				t.Errorf("noticed %d ms after it was well", seen.Noticed)
			}
			if strings.HasPrefix(tt.name, "http") && !strings.HasPrefix(seen.Header.Get("User-Agent"), "kube-probe/") {
				t.Errorf("asked by %q", seen.Header.Get("User-Agent"))
			}
			if tt.name == "http-headers" && seen.Header.Get("X-Own") != "yes-sir" {
				t.Errorf("asked with %v", seen.Header)
			}
		})
	}
}

// TestNoLongerReady has an app fail its readiness probe later: it gets no
// requests until it is well again, and is not restarted.
func TestNoLongerReady(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "notready")
	s.Serves(platform.Service{Name: "web", Notes: "autoscaling.knative.dev/min-scale: '1'", Box: "readinessProbe: {httpGet: {path: /health}}"})
	pod := s.Answer("web", "/?pod")
	s.Answer("web", "/fail")
	ask := func(want string) {
		t.Helper()
		platform.Eventually(t, time.Minute, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			status, body, err := p.Get(ctx, s.HostOf("web"), "/?pod")
			got := body
			if err != nil || status == http.StatusServiceUnavailable {
				got = "none"
			}
			if got != want {
				return fmt.Errorf("%d %q %v, want %q", status, body, err, want)
			}
			return nil
		})
	}
	ask("none")
	s.Becomes("pod/"+pod, `.status.conditions[?(@.type=="Ready")].status`, "False")
	s.K("exec", pod, "--", "/ko-app/app", "get", "http://localhost:8080/recover")
	ask(pod)
	if got := s.Field("pod/"+pod, ".status.containerStatuses[0].restartCount"); got != "0" {
		t.Errorf("restarted %s times", got)
	}
}

// TestNoLongerAlive has an app fail its liveness probe: it is restarted, and
// serves again.
func TestNoLongerAlive(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "notalive")
	s.Serves(platform.Service{
		Name: "web", Notes: "autoscaling.knative.dev/min-scale: '1'",
		Box: "livenessProbe: {httpGet: {path: '/health?live'}, periodSeconds: 1, failureThreshold: 2}",
	})
	pod := s.Answer("web", "/?pod")
	asked := func() error {
		var seen struct{ Alive int }
		status, body, err := s.Ask("web", "/probed")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d %q %w", status, body, err)
		}
		s.Tells("web", "/probed", &seen)
		if seen.Alive < 2 {
			return fmt.Errorf("asked %d times", seen.Alive)
		}
		return nil
	}
	platform.Eventually(t, time.Minute, asked)
	s.Answer("web", "/fail")
	s.Becomes("pod/"+pod, ".status.containerStatuses[0].restartCount", "1")
	platform.Eventually(t, time.Minute, asked)
	s.Says([]string{"Liveness probe failed: HTTP probe failed with statuscode: 503", "failed liveness probe, will be restarted"}, "get", "event")
}
