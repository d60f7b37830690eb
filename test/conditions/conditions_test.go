// SPDX-License-Identifier: Apache-2.0

// Package conditions holds the API to Knative's: what objects say of
// themselves when something fails, is mended, changed, taken or deleted.
package conditions

import (
	"context"
	"flag"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // the tests wait more than they work
	os.Exit(platform.Main(m, &p))
}

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

func newSpace(t *testing.T, name string) *platform.Space {
	t.Helper()
	if err := app(); err != nil {
		t.Fatal(err)
	}
	s := p.Space(t, name)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := p.Kubectl(context.Background(), "-n", name, "get", "ksvc,configuration,revision,route,kpa,deploy", "-o", "yaml")
			t.Log(out[:min(len(out), 20000)])
		}
	})
	return s
}

func wantAll(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %q, want %q", what, got, want)
	}
}

// noneReady is what a service says while its first revision fails: its route
// was looked at last.
func noneReady(name string) string {
	return `Configuration "` + name + `" does not have any ready Revision.`
}

// TestFailures has a first revision fail in every way, and looks at what
// revision, configuration, route and service say.
func TestFailures(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "failures")
	s.K("create", "quota", "none", "--hard=count/replicasets.apps=100") // harmless: other tests have the one that hurts
	const soon = "serving.knative.dev/progress-deadline: 5s"
	missing := p.Registry + "/nosuch"
	for _, tt := range []struct {
		platform.Service
		condition, reason, message string
	}{
		{platform.Service{Name: "exit", Env: map[string]string{"EXIT": "7"}}, "ContainerHealthy", "ExitCode7", "Container failed with: leaving with 7\n"},
		{platform.Service{Name: "exit-well", Env: map[string]string{"EXIT": "0"}}, "ContainerHealthy", "ExitCode0", "Container failed with: container exited with no error"},
		{platform.Service{Name: "percent", Env: map[string]string{"EXIT": "9", "SAY": "100%d of it"}}, "ContainerHealthy", "ExitCode9", "Container failed with: 100%d of it\nleaving with 9\n"},
		{platform.Service{Name: "no-command", Box: "command: [/nosuch]"}, "ContainerHealthy", "ExitCode128", "Container failed with: …"},
		{platform.Service{Name: "sidecar", Env: map[string]string{"START_DELAY": "3s"}, Box: "ports: [{containerPort: 8080}]", More: "{image: " + p.App() + ", name: side, env: [{name: EXIT, value: '5'}]}"}, "ContainerHealthy", "ExitCode5", "Container failed with: leaving with 5\n"},
		{platform.Service{Name: "missing", Image: missing}, "ContainerHealthy", "ContainerMissing", `Unable to fetch image "` + missing + `": failed to resolve image to digest: …`},
		{platform.Service{Name: "no-tag", Image: p.App() + ":nosuch"}, "ContainerHealthy", "ContainerMissing", `Unable to fetch image "` + p.App() + `:nosuch": failed to resolve image to digest: …`},
		{platform.Service{Name: "no-registry", Image: "127.0.0.1:1/some"}, "ContainerHealthy", "ContainerMissing", `Unable to fetch image "127.0.0.1:1/some": failed to resolve image to digest: …`},
		{platform.Service{Name: "too-large", Box: `resources: {requests: {cpu: "999"}}`}, "ResourcesAvailable", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu…"},
		{platform.Service{Name: "no-account", Spec: "serviceAccountName: nosuch"}, "ResourcesAvailable", "FailedCreate", `pods "no-account-00001-deployment-…`},
		{platform.Service{Name: "wrong-port", Notes: soon, Env: map[string]string{"LISTEN": "9999"}}, "ResourcesAvailable", "ProgressDeadlineExceeded", `ReplicaSet "wrong-port-00001-deployment-…`},
		{platform.Service{Name: "never-ready", Notes: soon, Box: "readinessProbe: {httpGet: {path: '/?status=500'}}"}, "ResourcesAvailable", "ProgressDeadlineExceeded", `ReplicaSet "never-ready-00001-deployment-…`},
		{platform.Service{Name: "no-config-map", Notes: soon, Box: "envFrom: [{configMapRef: {name: nosuch}}]"}, "ResourcesAvailable", "CreateContainerConfigError", `configmap "nosuch" not found`},
		{platform.Service{Name: "no-key", Notes: soon, Box: "env: [{name: X, valueFrom: {secretKeyRef: {name: nosuch, key: k}}}]"}, "ResourcesAvailable", "CreateContainerConfigError", `secret "nosuch" not found`},
	} {
		t.Run(tt.Name, func(t *testing.T) {
			t.Parallel()
			s := s.For(t)
			s.Deploy(tt.Service)
			revision := tt.Name + "-00001"
			s.Condition("revision/"+revision, tt.condition, "False", tt.reason, tt.message)
			s.Condition("revision/"+revision, "Ready", "False", tt.reason, tt.message)
			begin, _ := strings.CutSuffix(tt.message, "…")
			s.Condition("configuration/"+tt.Name, "Ready", "False", "RevisionFailed", `Revision "`+revision+`" failed with message: `+begin+"…")
			s.Condition("ksvc/"+tt.Name, "ConfigurationsReady", "False", "RevisionFailed", `Revision "`+revision+`" failed with message: `+begin+"…")
			s.Condition("route/"+tt.Name, "AllTrafficAssigned", "False", "RevisionMissing", noneReady(tt.Name))
			s.Condition("ksvc/"+tt.Name, "RoutesReady", "False", "RevisionMissing", noneReady(tt.Name))
			s.Condition("ksvc/"+tt.Name, "Ready", "False", "RevisionMissing", noneReady(tt.Name))
			for _, object := range []string{"ksvc/" + tt.Name, "configuration/" + tt.Name, "revision/" + revision, "route/" + tt.Name} {
				want(t, object+" observed", s.Field(object, ".status.observedGeneration"), "1")
			}
			want(t, "latest created", s.Field("ksvc/"+tt.Name, ".status.latestCreatedRevisionName"), revision)
			want(t, "latest ready", s.Field("ksvc/"+tt.Name, ".status.latestReadyRevisionName"), "")
			// The next one is well.
			s.Serves(platform.Service{Name: tt.Name})
			want(t, "answer", s.Answer(tt.Name, "/"), tt.Name+"-00002")
			s.Condition("configuration/"+tt.Name, "Ready", "True", "", "")
			want(t, "latest ready", s.Field("ksvc/"+tt.Name, ".status.latestReadyRevisionName"), tt.Name+"-00002")
		})
	}
}

// TestQuota has a namespace that allows no pods.
func TestQuota(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "quota")
	s.K("create", "quota", "none", "--hard=pods=0")
	s.Deploy(platform.Service{Name: "web"})
	s.Condition("revision/web-00001", "ResourcesAvailable", "False", "FailedCreate", `pods "web-00001-deployment-…`)
	s.Condition("ksvc/web", "ConfigurationsReady", "False", "RevisionFailed", `Revision "web-00001" failed with message: pods "web-00001-deployment-…`)
	wantAll(t, s.Field("ksvc/web", ".status.conditions[*].message"), "is forbidden: exceeded quota: none")
	s.K("delete", "quota", "none")
	s.Serves(platform.Service{Name: "web", Env: map[string]string{"RESPONSE": "in"}})
	want(t, "answer", s.Answer("web", "/"), "in")
}

// TestMendedFromOutside has revisions that fail for what they lack, which then comes.
func TestMendedFromOutside(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "mended")
	s.Deploy(platform.Service{Name: "map", Box: "envFrom: [{configMapRef: {name: late}}]"})
	s.Deploy(platform.Service{Name: "account", Spec: "serviceAccountName: late"})
	s.Condition("revision/account-00001", "ResourcesAvailable", "False", "FailedCreate", `pods "account-00001-deployment-…`)
	s.K("create", "configmap", "late", "--from-literal=RESPONSE=from-map")
	s.K("create", "serviceaccount", "late")
	s.ServiceReady("map")
	want(t, "answer", s.Answer("map", "/"), "from-map")
	s.ServiceReady("account")
}

// TestFailsLater has a revision crash that was ready: it is restarted, and its
// service still leads to it.
func TestFailsLater(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "failslater")
	s.Serves(platform.Service{Name: "web", Notes: "autoscaling.knative.dev/min-scale: '1'"})
	pod := s.Answer("web", "/?pod")
	_, _ = s.Try("exec", pod, "--", "/ko-app/app", "get", "http://localhost:8080/crash?code=3&say=out-of-luck")
	platform.Eventually(t, platformLimit, func() error {
		got, err := s.Try("get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.message}")
		if err == nil && got != "3 out-of-luck\n" {
			return errorf("last state %q", got)
		}
		return err
	})
	s.ServiceReady("web")
	want(t, "answer", s.Answer("web", "/"), "web-00001")
	s.Condition("revision/web-00001", "Ready", "True", "", "")
}
