// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	apisconfig "knative.dev/serving/pkg/apis/config"
	"sigs.k8s.io/yaml"

	"github.com/sonagi/sonagi/internal/admission"
)

func options() Options {
	return Options{
		Domain: "sonagi.localhost", HostIP: netip.MustParseAddr("10.42.0.1"), ClusterDNS: netip.MustParseAddr("10.43.0.10"),
		GatewayPort: 8080, InternalPort: 8081, DNSPort: 53, RegistryPort: 5000, MetricsPort: 10250,
	}
}

func fakeAPI(t *testing.T) *fake.FakeDynamicClient {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{}
	for kind, gvr := range resources {
		lists[gvr] = kind + "List"
	}
	api := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)
	established := []any{object{"type": "Established", "status": "True"}}
	api.PrependReactor("create", "customresourcedefinitions", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u := a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured)
		u.Object["status"] = object{"conditions": established}
		return false, nil, nil
	})
	// The fake cannot apply; a merge is near enough for what is applied here.
	api.PrependReactor("patch", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		p := a.(clienttesting.PatchAction)
		if p.GetPatchType() != types.ApplyPatchType {
			return false, nil, nil
		}
		merge := clienttesting.NewPatchAction(p.GetResource(), p.GetNamespace(), p.GetName(), types.MergePatchType, p.GetPatch())
		return clienttesting.ObjectReaction(api.Tracker())(merge)
	})
	return api
}

func TestApplyOnce(t *testing.T) {
	api := fakeAPI(t)
	if changed, err := apply(context.Background(), api, options()); err != nil || !changed {
		t.Fatalf("first: %v, %v", changed, err)
	}
	wrote := len(api.Actions())
	if changed, err := apply(context.Background(), api, options()); err != nil || changed {
		t.Fatalf("second: %v, %v", changed, err)
	}
	if n := len(api.Actions()) - wrote; n != 1 {
		t.Errorf("a start with nothing to do asked %d times, want once", n)
	}
	kourier, err := api.Resource(resources["Service"]).Namespace(ingressNamespace).Get(context.Background(), "kourier", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ingress, _, _ := unstructured.NestedSlice(kourier.Object, "status", "loadBalancer", "ingress")
	if len(ingress) != 1 || ingress[0].(object)["ip"] != "10.42.0.1" {
		t.Errorf("the gateway's address is %v", ingress)
	}
}

func TestSettingsStayTheirReaders(t *testing.T) {
	api := fakeAPI(t)
	if _, err := apply(context.Background(), api, options()); err != nil {
		t.Fatal(err)
	}
	maps := api.Resource(resources["ConfigMap"]).Namespace(servingNamespace)
	cm, err := maps.Get(context.Background(), "config-domain", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = unstructured.SetNestedField(cm.Object, "", "data", "example.com")
	unstructured.RemoveNestedField(cm.Object, "data", "sonagi.localhost")
	if _, err := maps.Update(context.Background(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	other := options()
	other.RegistryPort++
	if changed, err := apply(context.Background(), api, other); err != nil || !changed {
		t.Fatalf("%v, %v", changed, err)
	}
	cm, err = maps.Get(context.Background(), "config-domain", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data, _, _ := unstructured.NestedStringMap(cm.Object, "data")
	if _, back := data["sonagi.localhost"]; back {
		t.Error("an upgrade put a setting back that its reader had removed")
	}
	if _, kept := data["example.com"]; !kept {
		t.Error("an upgrade took a setting away")
	}
}

// The examples are read as settings, so that none tells of a key that is not there.
func TestExamplesAreSettings(t *testing.T) {
	for _, u := range configMaps(options()) {
		text, _, _ := unstructured.NestedString(u.Object, "data", exampleKey)
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: servingNamespace, Name: u.GetName()}}
		if err := yaml.UnmarshalStrict([]byte(text), &cm.Data); err != nil {
			t.Errorf("%s: %v", u.GetName(), err)
			continue
		}
		if len(cm.Data) == 0 {
			t.Errorf("%s: the example sets nothing", u.GetName())
		}
		if err := admission.ValidateConfigMap(cm); err != nil {
			t.Errorf("%s: %v", u.GetName(), err)
		}
		delete(cm.Data, "_example")
		installed := &corev1.ConfigMap{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, installed); err != nil {
			t.Fatal(err)
		}
		if err := admission.ValidateConfigMap(installed); err != nil {
			t.Errorf("%s as installed: %v", u.GetName(), err)
		}
	}
}

// What the example of config-features shows is what holds without it.
func TestFeatureDefaults(t *testing.T) {
	want, err := apisconfig.NewFeaturesConfigFromMap(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range configMaps(options()) {
		if u.GetName() != "config-features" {
			continue
		}
		text, _, _ := unstructured.NestedString(u.Object, "data", exampleKey)
		var data map[string]string
		if err := yaml.Unmarshal([]byte(text), &data); err != nil {
			t.Fatal(err)
		}
		have, err := apisconfig.NewFeaturesConfigFromMap(data)
		if err != nil {
			t.Fatal(err)
		}
		if *have != *want {
			t.Errorf("example says\n%+v, default is\n%+v", *have, *want)
		}
	}
}
