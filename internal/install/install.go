// SPDX-License-Identifier: Apache-2.0

// Package install applies the objects the platform consists of.
//
// The whole set is built first, from Options alone, and its hash is kept in a ConfigMap: a
// start that finds the same hash reads one object and writes none. A ConfigMap with settings
// belongs to its reader once it exists; after that only its example text is kept current.
package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// RegistryPort is that of the Service through which pods reach the built-in registry.
const RegistryPort = 5000

const (
	servingNamespace = "knative-serving"
	ingressNamespace = "knative-serving-ingress"
	systemNamespace  = "sonagi-system"
	manager          = "sonagi"
	recordName       = "installed"
	// writers is how many objects are sent at a time: enough to hide the API server's
	// latency, few enough to leave it a core.
	writers = 8
)

// Options say where the parts of this machine's platform are found.
type Options struct {
	Domain        string     // default domain of routes
	HostIP        netip.Addr // the bridge's address, at which pods and Services reach this process's listeners
	ClusterDNS    netip.Addr // ClusterIP of kube-dns
	GatewayPort   uint16     // the gateway for traffic from outside
	SecurePort    uint16     // the same by HTTPS; 0 leaves it out
	InternalPort  uint16     // the gateway for traffic from inside
	DNSPort       uint16
	RegistryPort  uint16
	MetricsPort   uint16     // serves metrics.k8s.io over TLS; 0 leaves it out
	MetricsCA     []byte     // PEM of the authority that signed the metrics listener's certificate; empty skips the check
	LoadBalancer  netip.Addr // address of the gateway from outside; HostIP if not set
	DataPlaneUser string     // user name of the data plane; sonagi:data-plane if not set

	ServingMetricsPort uint16 // serves Serving's metrics to Prometheus; 0 leaves it out
}

// Apply brings the objects into the cluster and returns whether anything had to be written.
// When it returns, the kinds it defines are served.
func Apply(ctx context.Context, cfg *rest.Config, o Options) (changed bool, err error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.RateLimiter = -1, nil
	api, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return false, fmt.Errorf("install: %w", err)
	}
	return apply(ctx, api, o)
}

func apply(ctx context.Context, api dynamic.Interface, o Options) (bool, error) {
	stages, err := objects(o.withDefaults())
	if err != nil {
		return false, fmt.Errorf("install: %w", err)
	}
	sum, err := hash(stages)
	if err != nil {
		return false, fmt.Errorf("install: %w", err)
	}
	record := api.Resource(resources["ConfigMap"]).Namespace(systemNamespace)
	have, err := record.Get(ctx, recordName, metav1.GetOptions{})
	if err == nil {
		if was, _, _ := unstructured.NestedString(have.Object, "data", "hash"); was == sum {
			return false, nil
		}
	} else if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("install: read what is installed: %w", err)
	}
	for _, stage := range stages {
		if err := applyStage(ctx, api, stage); err != nil {
			return true, fmt.Errorf("install: %w", err)
		}
	}
	if err := established(ctx, api, stages); err != nil {
		return true, fmt.Errorf("install: %w", err)
	}
	done := configMap(systemNamespace, recordName, map[string]any{"hash": sum})
	if err := put(ctx, api, done); err != nil {
		return true, fmt.Errorf("install: %w", err)
	}
	return true, nil
}

func (o Options) withDefaults() Options {
	if !o.LoadBalancer.IsValid() {
		o.LoadBalancer = o.HostIP
	}
	if o.DataPlaneUser == "" {
		o.DataPlaneUser = "sonagi:data-plane"
	}
	return o
}

// applyStage sends the objects of one stage side by side; later stages need them.
func applyStage(ctx context.Context, api dynamic.Interface, stage []*unstructured.Unstructured) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for _, obj := range stage {
		g.Go(func() error { return put(ctx, api, obj) })
	}
	return g.Wait()
}

// put creates the object, which is the quick way on a first start, or applies it over the one
// that is there.
func put(ctx context.Context, api dynamic.Interface, obj *unstructured.Unstructured) error {
	client := clientFor(api, obj)
	status, hasStatus := obj.Object["status"]
	obj = obj.DeepCopy()
	delete(obj.Object, "status")
	_, err := client.Create(ctx, obj, metav1.CreateOptions{FieldManager: manager})
	if apierrors.IsInvalid(err) && giveBack(ctx, client, api, obj) {
		_, err = client.Create(ctx, obj, metav1.CreateOptions{FieldManager: manager})
	}
	if apierrors.IsAlreadyExists(err) || apierrors.IsInvalid(err) && isThere(ctx, client, obj) {
		keepSettings(obj)
		_, err = client.Apply(ctx, obj.GetName(), obj, metav1.ApplyOptions{FieldManager: manager, Force: true})
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", obj.GetKind(), obj.GetName(), err)
	}
	if hasStatus {
		patch, err := json.Marshal(map[string]any{"status": status})
		if err != nil {
			return fmt.Errorf("status of %s %s: %w", obj.GetKind(), obj.GetName(), err)
		}
		o := metav1.PatchOptions{FieldManager: manager}
		if _, err := client.Patch(ctx, obj.GetName(), types.MergePatchType, patch, o, "status"); err != nil {
			return fmt.Errorf("status of %s %s: %w", obj.GetKind(), obj.GetName(), err)
		}
	}
	return nil
}

// isThere says whether the object exists. A Service with an address of its own
// that does is refused for the address, not for its name.
func isThere(ctx context.Context, client dynamic.ResourceInterface, obj *unstructured.Unstructured) bool {
	_, err := client.Get(ctx, obj.GetName(), metav1.GetOptions{})
	return err == nil
}

// giveBack frees the address of a Service that was being created when the API
// server was killed, and says whether it did: the address is allocated first,
// and then the Service did not come to be. The API server's own repair takes minutes.
func giveBack(ctx context.Context, client dynamic.ResourceInterface, api dynamic.Interface, obj *unstructured.Unstructured) bool {
	ip, _, _ := unstructured.NestedString(obj.Object, "spec", "clusterIP")
	if obj.GetKind() != "Service" || ip == "" {
		return false
	}
	addresses := api.Resource(schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "ipaddresses"})
	address, err := addresses.Get(ctx, ip, metav1.GetOptions{})
	if err != nil {
		return false
	}
	name, _, _ := unstructured.NestedString(address.Object, "spec", "parentRef", "name")
	namespace, _, _ := unstructured.NestedString(address.Object, "spec", "parentRef", "namespace")
	if name != obj.GetName() || namespace != obj.GetNamespace() {
		return false
	}
	if _, err := client.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return false
	}
	uid := address.GetUID()
	return addresses.Delete(ctx, ip, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}) == nil
}

// keepSettings leaves of a ConfigMap with settings only the example.
func keepSettings(obj *unstructured.Unstructured) {
	if obj.GetKind() != "ConfigMap" || obj.GetNamespace() != servingNamespace {
		return
	}
	data, _, _ := unstructured.NestedMap(obj.Object, "data")
	for key := range data {
		if key != exampleKey {
			delete(data, key)
		}
	}
	obj.Object["data"] = data
}

// established waits until the API server serves the kinds that were defined.
func established(ctx context.Context, api dynamic.Interface, stages [][]*unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	missing := map[string]bool{}
	for _, stage := range stages {
		for _, obj := range stage {
			if obj.GetKind() == "CustomResourceDefinition" {
				missing[obj.GetName()] = true
			}
		}
	}
	note := func(u *unstructured.Unstructured) {
		if hasCondition(u, "Established") {
			delete(missing, u.GetName())
		}
	}
	client := api.Resource(resources["CustomResourceDefinition"])
	for {
		list, err := client.List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list definitions: %w", err)
		}
		for i := range list.Items {
			note(&list.Items[i])
		}
		if len(missing) == 0 {
			return nil
		}
		if err := follow(ctx, client, list.GetResourceVersion(), note, missing); err != nil {
			return fmt.Errorf("definitions that are not served: %v: %w", slices.Sorted(maps.Keys(missing)), err)
		}
	}
}

// follow notes changes until nothing is missing or the server ends the watch.
func follow(ctx context.Context, client dynamic.ResourceInterface, from string, note func(*unstructured.Unstructured), missing map[string]bool) error {
	w, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: from})
	if err != nil {
		return err
	}
	defer w.Stop()
	for len(missing) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-w.ResultChan():
			if !ok {
				return nil
			}
			if u, ok := e.Object.(*unstructured.Unstructured); ok {
				note(u)
			}
		}
	}
	return nil
}

func hasCondition(u *unstructured.Unstructured, name string) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == name {
			return c["status"] == "True"
		}
	}
	return false
}

func hash(stages [][]*unstructured.Unstructured) (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(stages); err != nil {
		return "", fmt.Errorf("hash objects: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// resources are where the kinds that are installed live. Discovery would cost a round trip
// for each group.
var resources = map[string]schema.GroupVersionResource{
	"Namespace":                {Version: "v1", Resource: "namespaces"},
	"ConfigMap":                {Version: "v1", Resource: "configmaps"},
	"Service":                  {Version: "v1", Resource: "services"},
	"EndpointSlice":            {Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
	"ClusterRole":              {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	"ClusterRoleBinding":       {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	"Role":                     {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	"RoleBinding":              {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	"CustomResourceDefinition": {Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	"APIService":               {Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

func clientFor(api dynamic.Interface, obj *unstructured.Unstructured) dynamic.ResourceInterface {
	r := api.Resource(resources[obj.GetKind()])
	if ns := obj.GetNamespace(); ns != "" {
		return r.Namespace(ns)
	}
	return r
}
