// SPDX-License-Identifier: Apache-2.0

// Package podspec tries what a revision may ask for its pods: containers,
// volumes, environment, accounts and limits; and the flags of config-features,
// which allow more or less of it.
package podspec

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "6") // the tests wait more than they work
	os.Exit(platform.Main(m, &p))
}

const limit = time.Minute

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

func newSpace(t *testing.T, name string) *platform.Space {
	t.Helper()
	if err := app(); err != nil {
		t.Fatal(err)
	}
	return p.Space(t, name)
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %q, want %q", what, got, want)
	}
}

// A world is what the app says about where it runs.
type world struct {
	Env, Mounts   []string
	UID, GID, PID int
	Groups        []int
	Status        string
	Paths         map[string]found
}

type found struct {
	Error, Kind, Mode, Link, Text, Read, Write string
	Owner                                      [2]uint32
}

func inside(s *platform.Space, service string, paths ...string) (w world) {
	s.Tells(service, "/inside?path="+strings.Join(paths, "&path="), &w)
	return w
}

func (w world) env(name string) string {
	for _, kv := range w.Env {
		if key, value, _ := strings.Cut(kv, "="); key == name {
			return value
		}
	}
	return "(not set)"
}

func (w world) field(name string) string {
	for line := range strings.Lines(w.Status) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// set changes flags, and returns when admission knows of it.
func set(t *testing.T, s *platform.Space, flags map[string]string, taken platform.Service) {
	t.Helper()
	change := func(ctx context.Context, data any) {
		patch, _ := json.Marshal(map[string]any{"data": data})
		if out, err := p.Kubectl(ctx, "-n", "knative-serving", "patch", "configmap", "config-features", "--type=merge", "-p", string(patch)); err != nil {
			t.Error(out)
		}
	}
	back := map[string]any{}
	for key := range flags {
		back[key] = nil
	}
	change(t.Context(), flags)
	t.Cleanup(func() { change(context.Background(), back) })
	platform.Eventually(t, limit, func() error {
		out, err := try(s, taken)
		if err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})
}

// try has a service's manifest checked, without making it.
func try(s *platform.Space, k platform.Service) (string, error) {
	cmd := s.Command("apply", "--dry-run=server", "-f", "-")
	cmd.Stdin = strings.NewReader(p.Manifest(k))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestEnvironmentFromObjects(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "environment")
	s.K("create", "configmap", "settings", "--from-literal=COLOUR=red", "--from-literal=SIZE=large", "--from-literal=in-valid.name=x")
	s.K("create", "secret", "generic", "keys", "--from-literal=TOKEN=secret-token")
	s.Serves(platform.Service{Name: "web", Box: `env:
- {name: ONE, valueFrom: {configMapKeyRef: {name: settings, key: SIZE}}}
- {name: TWO, valueFrom: {secretKeyRef: {name: keys, key: TOKEN}}}
- {name: NONE, valueFrom: {configMapKeyRef: {name: nosuch, key: SIZE, optional: true}}}
- {name: THREE, value: $(ONE)/$(COLOUR)}
envFrom:
- {configMapRef: {name: settings}}
- {prefix: P_, secretRef: {name: keys}}
- {configMapRef: {name: nosuch, optional: true}}`})
	w := inside(s, "web")
	for name, value := range map[string]string{"ONE": "large", "TWO": "secret-token", "NONE": "(not set)", "COLOUR": "red", "P_TOKEN": "secret-token", "THREE": "large/red"} {
		want(t, name, w.env(name), value)
	}
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "volumes")
	s.K("create", "configmap", "settings", "--from-literal=colour=red", "--from-literal=size=large")
	s.K("create", "secret", "generic", "keys", "--from-literal=token=secret-token")
	s.Serves(platform.Service{Name: "web", Marks: "of: template",
		Spec: `volumes:
- {name: settings, configMap: {name: settings, defaultMode: 0444, items: [{key: size, path: deep/size}]}}
- {name: keys, secret: {secretName: keys}}
- {name: none, secret: {secretName: nosuch, optional: true}}
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- name: all
  projected:
    sources:
    - {configMap: {name: settings, items: [{key: colour, path: colour}]}}
    - {secret: {name: keys, items: [{key: token, path: token}]}}
    - {serviceAccountToken: {path: identity, audience: someone, expirationSeconds: 900}}
    - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}`,
		Box: `volumeMounts:
- {name: settings, mountPath: /etc/settings, readOnly: true}
- {name: keys, mountPath: /etc/keys}
- {name: keys, mountPath: /etc/one-key, subPath: token}
- {name: none, mountPath: /etc/none}
- {name: disk, mountPath: /disk}
- {name: memory, mountPath: /memory}
- {name: all, mountPath: /all}`})
	w := inside(s, "web", "/etc/settings/deep/size", "/etc/settings/colour", "/etc/keys/token", "/etc/one-key", "/etc/none", "/disk", "/memory", "/all/colour", "/all/token", "/all/identity", "/all/labels")
	for path, text := range map[string]string{"/etc/settings/deep/size": "large", "/etc/keys/token": "secret-token", "/etc/one-key": "secret-token", "/all/colour": "red", "/all/token": "secret-token"} {
		f := w.Paths[path]
		if f.Text != text || f.Write == "" {
			t.Errorf("%s: %+v", path, f)
		}
	}
	if f := w.Paths["/etc/settings/colour"]; f.Error == "" {
		t.Error("a key that was not asked for is there")
	}
	for _, path := range []string{"/disk", "/memory"} {
		if f := w.Paths[path]; f.Write != "" || f.Mode != "drwxrwxrwx" {
			t.Errorf("%s: %+v", path, f)
		}
	}
	if !slices.ContainsFunc(w.Mounts, func(m string) bool { return strings.HasPrefix(m, "tmpfs /memory tmpfs ") }) {
		t.Error("/memory is not in memory")
	}
	if text := w.Paths["/all/identity"].Text; strings.Count(text, ".") != 2 {
		t.Errorf("the token is %q", text)
	}
	if text := w.Paths["/all/labels"].Text; !strings.Contains(text, `of="template"`) {
		t.Errorf("labels: %s", text)
	}
	// What is mounted follows its object.
	s.K("patch", "configmap", "settings", "--type=merge", "-p", `{"data":{"size":"small"}}`)
	platform.Eventually(t, limit, func() error {
		if got := inside(s, "web", "/etc/settings/deep/size").Paths["/etc/settings/deep/size"].Text; got != "small" {
			return fmt.Errorf("still %q", got)
		}
		return nil
	})
}

func TestContainers(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "containers")
	side := func(more string) string {
		return "{name: side, image: " + p.App() + ", env: [{name: LISTEN, value: '9001'}, {name: RESPONSE, value: from-the-side}]" + more + "}"
	}
	s.Serves(platform.Service{Name: "web", Box: "name: main\nports: [{containerPort: 8080}]", More: side("")})
	want(t, "answer", s.Answer("web", "/"), "web-00001")
	want(t, "answer of the other container", s.Answer("web", "/fetch?url=http://localhost:9001"), "from-the-side")
	want(t, "containers", s.K("get", "pod", "-l", "serving.knative.dev/service=web", "-o", "jsonpath={.items[0].spec.containers[*].name}"), "main side")
	var status []struct{ Name, ImageDigest string }
	if err := json.Unmarshal([]byte(s.Field("revision/web-00001", ".status.containerStatuses")), &status); err != nil || len(status) != 2 || !strings.Contains(status[1].ImageDigest, "@sha256:") {
		t.Errorf("container statuses: %+v, %v", status, err)
	}
	about := s.Answer("web", "/fetch?url=http://localhost:9001/about")
	for _, text := range []string{`"K_SERVICE=web"`, `"K_REVISION=web-00001"`} {
		if !strings.Contains(about, text) {
			t.Errorf("the other container lacks %s", text)
		}
	}
	if strings.Contains(about, `"PORT=`) {
		t.Error("the other container has a PORT")
	}
	for what, tt := range map[string]struct {
		k    platform.Service
		text string
	}{
		"no port":     {platform.Service{Name: "x", More: side("")}, "missing field(s): spec.template.spec.containers[*].ports"},
		"two ports":   {platform.Service{Name: "x", Box: "ports: [{containerPort: 8080}]", More: side(", ports: [{containerPort: 9001}]")}, "more than one container port is set: spec.template.spec.containers[*].ports"},
		"same name":   {platform.Service{Name: "x", Box: "name: side\nports: [{containerPort: 8080}]", More: side("")}, `duplicate container name "side": spec.template.spec.containers[1].name`},
		"other probe": {platform.Service{Name: "x", Box: "ports: [{containerPort: 8080}]", More: side(", readinessProbe: {tcpSocket: {port: 9001}}")}, "must not set the field(s): spec.template.spec.containers[1].readinessProbe"},
		"reserved":    {platform.Service{Name: "x", Box: "name: queue-proxy"}, `"queue-proxy" is a reserved container name: spec.template.spec.containers[0].name`},
	} {
		if out, err := try(s, tt.k); err == nil || !strings.Contains(out, tt.text) {
			t.Errorf("%s: %q is missing in: %s", what, tt.text, out)
		}
	}
}

func TestResources(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "resources")
	s.Serves(platform.Service{Name: "web", Box: "resources: {requests: {cpu: 50m, memory: 32Mi, ephemeral-storage: 10Mi}, limits: {cpu: 500m, memory: 64Mi}}"})
	want(t, "resources", s.K("get", "pod", "-l", "serving.knative.dev/service=web", "-o", "jsonpath={.items[0].spec.containers[0].resources.requests}{.items[0].spec.containers[0].resources.limits}"),
		`{"cpu":"50m","ephemeral-storage":"10Mi","memory":"32Mi"}{"cpu":"500m","memory":"64Mi"}`)
	want(t, "class", s.K("get", "pod", "-l", "serving.knative.dev/service=web", "-o", "jsonpath={.items[0].status.qosClass}"), "Burstable")
	out, err := try(s, platform.Service{Name: "x", Box: "resources: {claims: [{name: c}]}"})
	if err == nil || !strings.Contains(out, `unknown field "spec.template.spec.containers[0].resources.claims"`) {
		t.Errorf("claims: %s", out)
	}
}

func TestSecurityContext(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "security")
	const box = "spec.template.spec.containers[0].securityContext"
	s.Serves(platform.Service{Name: "strict", Box: "securityContext: {runAsUser: 1234, runAsGroup: 5678, runAsNonRoot: true, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}"})
	w := inside(s, "strict", "/tmp", "/")
	if w.UID != 1234 || w.GID != 5678 || !strings.Contains(w.Paths["/tmp"].Write, "read-only") || w.field("NoNewPrivs") != "1" || w.field("CapBnd") != "0000000000000000" || w.field("Seccomp") != "2" {
		t.Errorf("%+v", w)
	}
	s.Deploy(platform.Service{Name: "root", Box: "securityContext: {runAsUser: 0, runAsNonRoot: true}", Notes: "serving.knative.dev/progress-deadline: 5s"})
	s.Condition("revision/root-00001", "ResourcesAvailable", "False", "CreateContainerConfigError", "container's runAsUser breaks non-root policy…")
	for text, field := range map[string]string{
		"must not set the field(s): " + box + ".privileged":              "privileged: true",
		"must not set the field(s): " + box + ".capabilities.add":        "capabilities: {add: [NET_ADMIN]}",
		`unknown field "` + box + `.procMount"`:                          "procMount: Default",
		"expected 0 <= -10 <= 2147483647: " + box + ".runAsUser":         "runAsUser: -10",
		"expected 0 <= 4294967296 <= 2147483647: " + box + ".runAsGroup": "runAsGroup: 4294967296",
	} {
		if out, err := try(s, platform.Service{Name: "x", Box: "securityContext: {" + field + "}"}); err == nil || !strings.Contains(out, text) {
			t.Errorf("%q is missing in: %s", text, out)
		}
	}
	out, err := try(s, platform.Service{Name: "x"})
	if err != nil || !strings.Contains(out, "Warning: Kubernetes default value is insecure, Knative may default this to secure in a future release: "+box+".allowPrivilegeEscalation") {
		t.Errorf("no warning of insecure defaults: %s", out)
	}
}

// TestDryRun has the pod of a template checked, too, if a client only asks what would be.
func TestDryRun(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "dryrun")
	out, err := try(s, platform.Service{Name: "x", Box: "name: '&no'"})
	if err == nil || !strings.Contains(out, "validation callback failed: dry run failed with") || !strings.Contains(out, "spec.template") {
		t.Errorf("a name that no container can have: %s", out)
	}
	out, err = try(s, platform.Service{Name: "x", Spec: "serviceAccountName: nosuch"})
	if err == nil || !strings.Contains(out, `serviceaccount "nosuch" not found`) {
		t.Errorf("an account that is not there: %s", out)
	}
	if out, err = s.Try("get", "ksvc,pod", "-o", "name"); err != nil || out != "" {
		t.Errorf("left behind: %s %v", out, err)
	}
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "accounts")
	s.K("create", "serviceaccount", "reader")
	s.Deploy(platform.Service{Name: "with", Spec: "serviceAccountName: reader"})
	s.Deploy(platform.Service{Name: "without", Spec: "automountServiceAccountToken: false"})
	s.ServiceReady("with")
	s.ServiceReady("without")
	const token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	if f := inside(s, "with", token).Paths[token]; strings.Count(f.Text, ".") != 2 {
		t.Errorf("token: %+v", f)
	}
	want(t, "account", s.K("get", "pod", "-l", "serving.knative.dev/service=with", "-o", "jsonpath={.items[0].spec.serviceAccountName}"), "reader")
	if f := inside(s, "without", token).Paths[token]; f.Error == "" {
		t.Error("there is a token although it was declined")
	}
	out, err := try(s, platform.Service{Name: "x", Spec: "serviceAccountName: not@valid"})
	if err == nil || !strings.Contains(out, "invalid value: not@valid: spec.template.spec.serviceAccountName") {
		t.Errorf("a name that cannot be: %s", out)
	}
}

// TestVarLog has what containers write below /var/log kept in a volume. It
// rolls all revisions, and so does not run beside others.
func TestVarLog(t *testing.T) {
	s := newSpace(t, "varlog")
	patch := func(ctx context.Context, value string) {
		if out, err := p.Kubectl(ctx, "-n", "knative-serving", "patch", "configmap", "config-observability", "--type=merge", "-p", `{"data":{"logging.enable-var-log-collection":`+value+`}}`); err != nil {
			t.Error(out)
		}
	}
	s.Serves(platform.Service{Name: "web"})
	if f := inside(s, "web", "/var/log").Paths["/var/log"]; f.Error == "" && f.Write == "" {
		t.Errorf("/var/log can be written to before: %+v", f)
	}
	patch(t.Context(), `"true"`)
	t.Cleanup(func() { patch(context.Background(), "null") })
	platform.Eventually(t, limit, func() error {
		w := inside(s, "web", "/var/log")
		if f := w.Paths["/var/log"]; f.Error != "" || f.Write != "" {
			return fmt.Errorf("/var/log: %+v", f)
		}
		want(t, "namespace of the pod", w.env("K_INTERNAL_POD_NAMESPACE"), "varlog")
		return nil
	})
}
