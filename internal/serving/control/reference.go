// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// references finds the addresses of objects of any kind. Kinds other than Serving's are
// watched from the time on that somebody refers to one.
type references struct {
	cache  cache.Cache
	mapper meta.RESTMapper
	watch  func(source.Source) error
	to     func(kind string) handler.EventHandler

	mu      sync.Mutex
	watched map[schema.GroupVersionKind]bool
}

func newReferences(m manager.Manager) *references {
	return &references{cache: m.GetCache(), mapper: m.GetRESTMapper(), watched: map[schema.GroupVersionKind]bool{}}
}

// A target is what a reference leads to, or the reason why it leads nowhere.
type target struct {
	url     *apis.URL
	backend string // address of a Service that the gateway does not know by its name
	problem string
}

func (r *references) find(ctx context.Context, c *common, m *servingv1beta1.DomainMapping) (target, error) {
	ref := m.Spec.Ref
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	switch gvk {
	case servingv1.SchemeGroupVersion.WithKind("Service"):
		svc, err := known[servingv1.Service](ctx, c.client, ref.Namespace, ref.Name)
		if svc == nil || err != nil {
			return missing(ref, "services.serving.knative.dev"), err
		}
		return addressed(ref, duckv1.AddressStatus{Address: svc.Status.Address}), nil
	case servingv1.SchemeGroupVersion.WithKind("Route"):
		route, err := known[servingv1.Route](ctx, c.client, ref.Namespace, ref.Name)
		if route == nil || err != nil {
			return missing(ref, "routes.serving.knative.dev"), err
		}
		return addressed(ref, duckv1.AddressStatus{Address: route.Status.Address}), nil
	}
	mapping, err := r.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return target{problem: fmt.Sprintf("failed to get lister for %s: %v", gvk, err)}, nil
	}
	if err := r.follow(gvk); err != nil {
		return target{}, err
	}
	if gvk == corev1.SchemeGroupVersion.WithKind("Service") {
		return r.service(ctx, c, ref)
	}
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(gvk)
	if err := c.direct.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, obj); err != nil {
		if apierrors.IsNotFound(err) {
			return missing(ref, mapping.Resource.GroupResource().String()), nil
		}
		return target{}, fmt.Errorf("get %s %s: %w", ref.Kind, ref.Name, err)
	}
	var duck duckv1.AddressableType
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj.Object, &duck); err != nil {
		return target{problem: fmt.Sprintf("%s is not an AddressableType: %v", &ref, err)}, nil
	}
	return addressed(ref, duck.Status), nil
}

// service is a Service of Kubernetes: its name is its address.
func (r *references) service(ctx context.Context, c *common, ref duckv1.KReference) (target, error) {
	svc, err := known[corev1.Service](ctx, c.direct, ref.Namespace, ref.Name)
	if svc == nil || err != nil {
		return missing(ref, "services"), err
	}
	t := target{url: apis.HTTP(ref.Name + "." + ref.Namespace + ".svc." + c.options.ClusterDomain)}
	if !desired.Ours(svc) {
		if t.backend = desired.Backend(svc); t.backend == "" {
			t.problem = fmt.Sprintf("Service %q has no cluster IP", svc.Name)
		}
	}
	return t, nil
}

// follow has the objects of a kind watched, as far as to know when one changes.
func (r *references) follow(gvk schema.GroupVersionKind) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched[gvk] {
		return nil
	}
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(gvk)
	if err := r.watch(source.Kind[client.Object](r.cache, o, r.to(gvk.Kind))); err != nil {
		return fmt.Errorf("watch %s: %w", gvk, err)
	}
	r.watched[gvk] = true
	return nil
}

func missing(ref duckv1.KReference, resource string) target {
	return target{problem: fmt.Sprintf("failed to get object %s/%s: %s %q not found", ref.Namespace, ref.Name, resource, ref.Name)}
}

// addressed takes the address that an object tells, and among several the one that is asked for.
func addressed(ref duckv1.KReference, status duckv1.AddressStatus) target {
	address := status.Address
	switch named := ref.Address; {
	case named != nil && *named != "":
		address = nil
		for i := range status.Addresses {
			if n := status.Addresses[i].Name; address == nil && n != nil && *n == *named {
				address = &status.Addresses[i]
			}
		}
		if address == nil {
			return target{problem: fmt.Sprintf("address with name %q not found for %s", *named, &ref)}
		}
	case len(status.Addresses) > 0:
		address = &status.Addresses[0]
	case address == nil:
		return target{problem: fmt.Sprintf("address not set for %s", &ref)}
	}
	switch {
	case address.URL == nil:
		return target{problem: fmt.Sprintf("URL missing in address of %s", &ref)}
	case address.URL.Host == "":
		return target{problem: fmt.Sprintf("hostname missing in address of %s", &ref)}
	}
	return target{url: address.URL}
}

// unsuitable says why a domain cannot stand for the target: it is to be a Service of the
// mapping's own namespace, and no path of it.
func (t target) unsuitable(namespace, clusterDomain string) string {
	suffix := ".svc." + clusterDomain
	name, ok := strings.CutSuffix(t.url.Host, suffix)
	parts := strings.Split(name, ".")
	switch {
	case strings.TrimSuffix(t.url.Path, "/") != "":
		return fmt.Sprintf("resolved URI %q contains a path", t.url)
	case !ok || len(parts) != 2:
		return fmt.Sprintf("resolved URI %q must be of the form {name}.{namespace}%s", t.url, suffix)
	case parts[1] != namespace:
		return fmt.Sprintf("resolved URI %q must be in same namespace as DomainMapping", t.url)
	}
	return ""
}

// addressChanges passes what matters of a Service or Route to domains: where it is.
func addressChanges() predicate.Predicate {
	address := func(o client.Object) (a *duckv1.Addressable) {
		switch o := o.(type) {
		case *servingv1.Service:
			a = o.Status.Address
		case *servingv1.Route:
			a = o.Status.Address
		}
		return a
	}
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		was, is := address(e.ObjectOld), address(e.ObjectNew)
		return was == nil != (is == nil) || was != nil && was.URL.String() != is.URL.String()
	}}
}
