// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"sigs.k8s.io/yaml"
)

const service = `
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  template:
    spec:
      containers: [{image: hello}]
`

func parseObject(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

// request runs an object through both stages, as the API server does.
func request(c *Control, old, obj *unstructured.Unstructured, sub string, dry bool) error {
	gvk := obj.GroupVersionKind()
	gvr := gvk.GroupVersion().WithResource(strings.ToLower(gvk.Kind) + "s")
	op := admission.Create
	var before runtime.Object
	if old != nil {
		op, before = admission.Update, old
	}
	a := admission.NewAttributesRecord(obj, before, gvk, obj.GetNamespace(), obj.GetName(), gvr, sub, op, nil, dry, &user.DefaultInfo{Name: "alice"})
	if err := c.Admit(context.Background(), a, nil); err != nil {
		return err
	}
	return c.Validate(context.Background(), a, nil)
}

func TestDefaults(t *testing.T) {
	c := Plugin(Options{})
	u := parseObject(t, service)
	if err := request(c, nil, u, "", false); err != nil {
		t.Fatal(err)
	}
	if by := u.GetAnnotations()["serving.knative.dev/creator"]; by != "alice" {
		t.Errorf("creator is %q", by)
	}
	containers, _, _ := unstructured.NestedSlice(u.Object, "spec", "template", "spec", "containers")
	if name := containers[0].(map[string]any)["name"]; name != "user-container" {
		t.Errorf("container is called %v", name)
	}
	traffic, _, _ := unstructured.NestedSlice(u.Object, "spec", "traffic")
	if len(traffic) != 1 || traffic[0].(map[string]any)["latestRevision"] != true {
		t.Errorf("traffic is %v", traffic)
	}
	again := u.DeepCopy()
	if err := request(c, u, again, "", false); err != nil {
		t.Fatal(err)
	}
	if !equal(t, u, again) {
		t.Error("defaulting twice is not defaulting once")
	}
}

func equal(t *testing.T, a, b *unstructured.Unstructured) bool {
	x, err := a.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(x) == string(y)
}

func TestRefusals(t *testing.T) {
	const denied = `admission webhook "validation.webhook.serving.knative.dev" denied the request: validation failed: `
	revision := `
apiVersion: serving.knative.dev/v1
kind: Revision
metadata: {name: web-00001, namespace: default}
spec:
  containerConcurrency: 0
  timeoutSeconds: 300
  containers: [{image: hello, name: user-container}]
`
	named := strings.Replace(service, "template:", "template:\n    metadata: {name: web-one}", 1)
	for name, tt := range map[string]struct{ old, object, want string }{
		"no image": {"", strings.Replace(service, "image: hello", "name: x", 1),
			denied + "missing field(s): spec.template.spec.containers[0].image"},
		"two ports": {"", strings.Replace(service, "image: hello", "image: hello, ports: [{containerPort: 1}, {containerPort: 2}]", 1),
			denied + "more than one container port is set: spec.template.spec.containers[*].ports\nOnly a single port is allowed across all containers"},
		"bad percent": {"", service + "  traffic: [{percent: 90, latestRevision: true}]\n",
			denied + "Traffic targets sum to 90, want 100: spec.traffic"},
		"bad min scale": {"", strings.Replace(service, "template:", `template:
    metadata: {annotations: {autoscaling.knative.dev/min-scale: "-1"}}`, 1),
			denied + "expected 0 <= -1 <= 2147483647: spec.template.metadata.annotations.autoscaling.knative.dev/min-scale"},
		"closed flag": {"", strings.Replace(service, "containers:", "nodeSelector: {a: b}\n      containers:", 1),
			denied + "must not set the field(s): spec.template.spec.nodeSelector"},
		"wrong type": {"", strings.Replace(service, "containers:", "timeoutSeconds: soon\n      containers:", 1),
			`admission webhook "webhook.serving.knative.dev" denied the request: mutation failed: cannot decode incoming new object: json: cannot unmarshal string into Go struct field`},
		"own name kept": {named, strings.Replace(named, "image: hello", "image: other", 1),
			denied + "Saw the following changes without a name change (-old +new): spec.template.metadata.name"},
		"own name without prefix": {"", strings.Replace(named, "web-one", "one", 1),
			denied + `invalid value: "one" must have prefix "web-": spec.template.metadata.name`},
		"revision changed": {revision, strings.Replace(revision, "image: hello", "image: other", 1),
			denied + "Immutable fields changed (-old +new): spec"},
		"creator changed": {strings.Replace(service, "metadata: {", "metadata: {annotations: {serving.knative.dev/creator: bob}, ", 1),
			strings.Replace(service, "metadata: {", "metadata: {annotations: {serving.knative.dev/creator: eve}, ", 1),
			denied + "annotation value is immutable: metadata.annotations.serving.knative.dev/creator"},
		"foreign label": {"", "apiVersion: serving.knative.dev/v1\nkind: Route\nmetadata: {name: r, labels: {serving.knative.dev/service: web}}\nspec: {traffic: [{revisionName: a, percent: 100}]}",
			denied + "missing field(s): metadata.labels.serving.knative.dev/service"},
	} {
		t.Run(name, func(t *testing.T) {
			var old *unstructured.Unstructured
			if tt.old != "" {
				old = parseObject(t, tt.old)
			}
			err := request(Plugin(Options{}), old, parseObject(t, tt.object), "", false)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestStatusPasses(t *testing.T) {
	broken := parseObject(t, strings.Replace(service, "image: hello", "name: x", 1))
	if err := request(Plugin(Options{}), broken.DeepCopy(), broken, "status", false); err != nil {
		t.Error(err)
	}
}

// What was stored before a default came may still be labelled.
func TestRevisionIsLabelled(t *testing.T) {
	stored := parseObject(t, "apiVersion: serving.knative.dev/v1\nkind: Revision\nmetadata: {name: web-00001}\nspec: {containers: [{image: hello}]}")
	labelled := stored.DeepCopy()
	labelled.SetLabels(map[string]string{"serving.knative.dev/routingState": "reserve"})
	if err := request(Plugin(Options{}), stored, labelled, "", false); err != nil {
		t.Error(err)
	}
}

func TestFlagOpens(t *testing.T) {
	version := "1"
	flags := map[string]string{}
	c := Plugin(Options{ConfigMap: func(name string) *corev1.ConfigMap {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version}}
		if name == "config-features" {
			cm.Data = flags
		}
		return cm
	}})
	text := strings.Replace(service, "containers:", "nodeSelector: {a: b}\n      containers:", 1)
	if request(c, nil, parseObject(t, text), "", false) == nil {
		t.Error("a closed flag let a field pass")
	}
	version, flags = "2", map[string]string{"kubernetes.podspec-nodeselector": "enabled"}
	if err := request(c, nil, parseObject(t, text), "", false); err != nil {
		t.Error(err)
	}
	version, flags = "3", map[string]string{"multi-container-probing": "perhaps", "kubernetes.podspec-nodeselector": "nonsense"}
	if err := request(c, nil, parseObject(t, text), "", false); err != nil && !strings.Contains(err.Error(), "must not set") {
		t.Error(err)
	}
}

func TestDryRun(t *testing.T) {
	c := Plugin(Options{DryRunPod: func(_ context.Context, pod *corev1.Pod) error { return errors.New(pod.Spec.Containers[0].Image) }})
	if err := request(c, nil, parseObject(t, service), "", false); err != nil {
		t.Error(err)
	}
	err := request(c, nil, parseObject(t, service), "", true)
	want := `admission webhook "validation.webhook.serving.knative.dev" denied the request: validation callback failed: dry run failed with hello: spec.template`
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestConfigMaps(t *testing.T) {
	for name, tt := range map[string]struct {
		of   string
		data map[string]string
		sum  string
		want string
	}{
		"good":          {"config-autoscaler", map[string]string{"stable-window": "30s"}, "", ""},
		"bad duration":  {"config-autoscaler", map[string]string{"stable-window": "soon"}, "", `failed to parse data: failed to parse "stable-window"`},
		"bad template":  {"config-network", map[string]string{"domain-template": "{{.Nome}}"}, "", "template: domain-template:1:2: executing"},
		"bad gc":        {"config-gc", map[string]string{"min-non-active-revisions": "-1"}, "", "min-non-active-revisions must be non-negative, was: -1"},
		"no sidecar":    {"config-deployment", map[string]string{"progress-deadline": "60s"}, "", ""},
		"bad deadline":  {"config-deployment", map[string]string{"progress-deadline": "-1s"}, "", "progress-deadline cannot be a non-positive duration, was -1s"},
		"bad domain":    {"config-domain", map[string]string{"example.com": "}"}, "", "error converting YAML to JSON"},
		"edited sample": {"config-gc", map[string]string{"_example": "x"}, "00000000", `the update modifies a key in "_example" which is probably not what you want. Instead`},
		"another map":   {"my-config", map[string]string{"stable-window": "soon"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: tt.of, Namespace: "knative-serving"}, Data: tt.data}
			if tt.sum != "" {
				cm.Annotations = map[string]string{"knative.dev/example-checksum": tt.sum}
			}
			a := admission.NewAttributesRecord(cm, nil, schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, cm.Namespace, cm.Name,
				schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "", admission.Create, nil, false, nil)
			err := Plugin(Options{}).Validate(context.Background(), a, converting{})
			const prefix = `admission webhook "config.webhook.serving.knative.dev" denied the request: validation failed: `
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), prefix+tt.want)):
				t.Errorf("got %v\nwant %s%s", err, prefix, tt.want)
			}
		})
	}
}

// converting is the part of the API server that knows internal forms; the objects here are
// in their public form already.
type converting struct{ admission.ObjectInterfaces }

func (converting) GetObjectConvertor() runtime.ObjectConvertor { return identity{} }

type identity struct{ runtime.ObjectConvertor }

func (identity) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

func BenchmarkOtherKind(b *testing.B) {
	c := Plugin(Options{})
	a := admission.NewAttributesRecord(&unstructured.Unstructured{}, nil, schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, "a", "b",
		schema.GroupVersionResource{Version: "v1", Resource: "pods"}, "", admission.Create, nil, false, nil)
	for b.Loop() {
		if c.Admit(context.Background(), a, nil) != nil || c.Validate(context.Background(), a, nil) != nil {
			b.Fatal("refused")
		}
	}
}
