// SPDX-License-Identifier: Apache-2.0

// Package firstminutes holds what a newcomer does in the first ten minutes.
package firstminutes

import (
	"os"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p, "--deploy", "samples/hello")) }

// must runs a client and returns its output.
func must(t *testing.T, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantAll(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func wantBody(t *testing.T, host, want string) {
	t.Helper()
	status, body, err := p.Get(t.Context(), host, "/")
	if err != nil || status != 200 || body != want+"\n" {
		t.Errorf("GET %s = %d %q, %v; want 200 %q", host, status, body, err, want)
	}
}

func TestSampleAnswers(t *testing.T) {
	wantAll(t, p.Output(), p.ServiceURL("hello", "default"), "Try next")
	wantBody(t, p.Host("hello", "default"), "Hello Openshift!")
}

func TestKn(t *testing.T) {
	ctx := t.Context()
	kn := func(args ...string) string {
		t.Helper()
		out, err := p.Kn(ctx, args...)
		return must(t, out, err)
	}
	host := p.Host("web", "default")
	wantAll(t, kn("service", "create", "web", "--image", p.Registry+"/hello", "--env", "RESPONSE=hi"),
		"Creating service 'web' in namespace 'default'", "Service 'web' created to latest revision 'web-00001' is available at URL", p.ServiceURL("web", "default"))
	wantBody(t, host, "hi")
	wantAll(t, kn("service", "list"), "NAME", "URL", "LATEST", "READY", "web-00001", "3 OK / 3", "True")
	wantAll(t, kn("service", "describe", "web"), "Name:       web", "Namespace:  default", "100%", "web-00001", "++ Ready", "++ ConfigurationsReady", "++ RoutesReady")

	kn("service", "update", "web", "--env", "RESPONSE=ho", "--tag", "web-00001=old")
	wantBody(t, host, "ho")
	wantBody(t, "old-"+host, "hi")
	kn("service", "update", "web", "--traffic", "web-00001=100", "--traffic", "@latest=0")
	wantBody(t, host, "hi")
	wantAll(t, kn("revision", "list", "-s", "web"), "web-00001", "web-00002", "100%")
	wantAll(t, kn("route", "list"), "web", "True")
	wantAll(t, kn("service", "delete", "web", "--wait"), "Service 'web' successfully deleted in namespace 'default'.")
	if status, _, err := p.Get(ctx, host, "/"); err != nil || status != 404 {
		t.Errorf("after delete: status %d, %v; want 404", status, err)
	}
}

func TestKubectlReadsAsWithKnative(t *testing.T) {
	out, err := p.Kubectl(t.Context(), "get", "ksvc,configuration,revision,route,kpa,deploy,pod", "-A", "-o", "wide")
	wantAll(t, must(t, out, err),
		"LATESTCREATED", "LATESTREADY", "CONFIG NAME", "GENERATION", "ACTUAL REPLICAS", "DESIRED REPLICAS", "DESIREDSCALE", "ACTUALSCALE",
		"service.serving.knative.dev/hello", "revision.serving.knative.dev/hello-00001", "podautoscaler.autoscaling.internal.knative.dev/hello-00001", "deployment.apps/hello-00001-deployment")
}

func TestWrongFieldIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, spec, want string }{
		{"value", "containerConcurrency: -1\n      containers: [{image: x}]", "expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency"},
		{"unknown", "nosuch: 1\n      containers: [{image: x}]", `unknown field "spec.template.spec.nosuch"`},
		{"no image", "containers: [{env: []}]", "missing field(s): spec.template.spec.containers[0].image"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := p.Apply(t.Context(), "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: wrong}\nspec:\n  template:\n    spec:\n      "+tt.spec+"\n")
			if err == nil {
				t.Fatalf("accepted:\n%s", out)
			}
			wantAll(t, out, tt.want)
		})
	}
}

func TestStatusAndVersion(t *testing.T) {
	out, err := p.Sonagi(t.Context(), "status")
	wantAll(t, must(t, out, err), "control", "node", "runtime", "ready", "MiB", "services")
	out, err = p.Sonagi(t.Context(), "version")
	wantAll(t, must(t, out, err), "sonagi", "Kubernetes v1.36.3")
	out, err = p.Kubectl(t.Context(), "version")
	wantAll(t, must(t, out, err), "Server Version: v1.36.3")
}

func TestSecondInstanceIsRefused(t *testing.T) {
	out, err := p.Sonagi(t.Context(), "up")
	if err == nil {
		t.Fatal("a second instance started")
	}
	wantAll(t, out, "already runs", "sonagi down")
}
