// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

// set changes settings, and at the end of the test takes the change back. Tests
// that use it do not run beside others.
func set(t *testing.T, name string, data map[string]string) {
	t.Helper()
	back := map[string]any{}
	for key := range data {
		back[key] = nil
	}
	if out, err := patchSettings(t, name, data); err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() {
		patch, _ := json.Marshal(map[string]any{"data": back})
		if out, err := p.Kubectl(context.Background(), "-n", "knative-serving", "patch", "configmap", name, "--type=merge", "-p", string(patch)); err != nil {
			t.Error(out)
		}
	})
}

func patchSettings(t *testing.T, name string, data any) (string, error) {
	patch, _ := json.Marshal(map[string]any{"data": data})
	return p.Kubectl(t.Context(), "-n", "knative-serving", "patch", "configmap", name, "--type=merge", "-p", string(patch))
}

func TestBadSettingsAreRefused(t *testing.T) {
	for _, tt := range []struct{ name, key, value, want string }{
		{"config-autoscaler", "stable-window", "1s", "stable-window = 1s, must be in [6s; 1h0m0s] range"},
		{"config-autoscaler", "container-concurrency-target-percentage", "0", "container-concurrency-target-percentage = 0.000000 is outside of valid range of (0, 100]"},
		{"config-autoscaler", "max-scale-up-rate", "0.5", "max-scale-up-rate = 0.5, must be greater than 1.0"},
		{"config-autoscaler", "enable-scale-to-zero", "maybe", `failed to parse "enable-scale-to-zero"`},
		{"config-domain", "example.com", "selector: [", "error converting YAML to JSON"},
		{"config-network", "domain-template", "{{.Name", "domain-template"},
		{"config-network", "http-protocol", "maybe", "httpProtocol maybe in config-network ConfigMap is not supported"},
		{"config-defaults", "revision-timeout-seconds", "soon", `failed to parse "revision-timeout-seconds"`},
		{"config-defaults", "revision-timeout-seconds", "900", "revision-timeout-seconds (900) cannot be greater than max-revision-timeout-seconds (600)"},
		{"config-defaults", "container-name-template", "{{", "unclosed action"},
		{"config-deployment", "progress-deadline", "0s", "progress-deadline cannot be a non-positive duration, was 0s"},
		{"config-gc", "max-non-active-revisions", "-3", "max-non-active-revisions"},
		{"config-gc", "min-non-active-revisions", "x", "min-non-active-revisions"},
		{"config-features", "_example", "changed", "the update modifies a key in \"_example\" which is probably not what you want"},
	} {
		out, err := patchSettings(t, tt.name, map[string]string{tt.key: tt.value})
		if err == nil {
			t.Errorf("%s: %s: %s was taken", tt.name, tt.key, tt.value)
		}
		wantAll(t, out, "admission webhook \"config.webhook.serving.knative.dev\" denied the request", tt.want)
	}
}

func TestDefaultsFollowSettings(t *testing.T) {
	s := newSpace(t, "newdefaults")
	set(t, "config-defaults", map[string]string{"revision-timeout-seconds": "123", "container-concurrency": "7", "revision-cpu-request": "50m", "container-name-template": "{{.Name}}-main"})
	platform.Eventually(t, platformLimit, func() error {
		out, err := s.Try("create", "--dry-run=server", "-o", "jsonpath={.spec.template.spec.timeoutSeconds}/{.spec.template.spec.containerConcurrency}/{.spec.template.spec.containers[0].name}/{.spec.template.spec.containers[0].resources.requests.cpu}", "-f", file(t, ksvc{name: "web"}.yaml()))
		if err == nil && !strings.HasSuffix(out, "123/7/web-main/50m") {
			err = fmt.Errorf("defaults are %s", out)
		}
		return err
	})
}

func TestDomainFollowsSettings(t *testing.T) {
	s := newSpace(t, "newdomain")
	s.serve(ksvc{name: "web", labels: "app: special"})
	set(t, "config-domain", map[string]string{"special.example.com": "selector:\n  app: special\n"})
	s.Becomes("ksvc/web", ".status.url", strings.Replace(p.ServiceURL("web", s.Name), p.Domain, "special.example.com", 1))
	s.ready("web")
	if status, body, err := p.Get(t.Context(), "web."+s.Name+".special.example.com", "/"); status != 200 || body != "web-00001" {
		t.Errorf("%d %q, %v", status, body, err)
	}
}

func TestTemplateFollowsSettings(t *testing.T) {
	s := newSpace(t, "newtemplate")
	s.serve(ksvc{name: "web"})
	set(t, "config-network", map[string]string{"domain-template": "{{.Name}}-{{.Namespace}}.{{.Domain}}"})
	platform.Eventually(t, platformLimit, func() error {
		host := "web-" + s.Name + "." + p.Domain
		status, body, err := p.Get(t.Context(), host, "/")
		if err == nil && (status != 200 || body != "web-00001") {
			err = fmt.Errorf("%s: %d %q", host, status, body)
		}
		return err
	})
	wantAll(t, s.Field("ksvc/web", ".status.url"), "http://web-"+s.Name+"."+p.Domain)
}

func TestFeaturesFollowSettings(t *testing.T) {
	s := newSpace(t, "newfeature")
	picky := ksvc{name: "web", spec: "nodeSelector: {kubernetes.io/os: linux}"}
	out, err := s.TryMake(picky.yaml())
	if err == nil {
		t.Error("nodeSelector was taken although the feature is off")
	}
	wantAll(t, out, "must not set the field(s): spec.template.spec.nodeSelector")
	set(t, "config-features", map[string]string{"kubernetes.podspec-nodeselector": "enabled"})
	platform.Eventually(t, platformLimit, func() error {
		_, err := s.TryMake(picky.yaml())
		return err
	})
	s.ready("web")
}

func TestAutoscalerFollowsSettings(t *testing.T) {
	s := newSpace(t, "newscale")
	set(t, "config-autoscaler", map[string]string{"allow-zero-initial-scale": "true", "initial-scale": "0", "stable-window": "6s"})
	platform.Eventually(t, platformLimit, func() error {
		_, err := s.TryMake(ksvc{name: "none", notes: "autoscaling.knative.dev/initial-scale: '0'"}.yaml())
		return err
	})
	s.ready("none")
	s.pods("none", 0, platformLimit)
	if got := s.get("none", "/"); got != "none-00001" {
		t.Errorf("answer %q", got)
	}
	s.pods("none", 0, platformLimit) // in the window of the settings
}

func TestDeploymentFollowsSettings(t *testing.T) {
	s := newSpace(t, "newdeadline")
	s.serve(ksvc{name: "web"})
	set(t, "config-deployment", map[string]string{"progress-deadline": "77s"})
	s.Becomes("deployment/web-00001-deployment", ".spec.progressDeadlineSeconds", "77")
}
