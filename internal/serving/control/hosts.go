// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// hosts are the names of a route and its tags: in the cluster, where each is a Service, and
// outside, unless that Service's label or the route's keeps it inside.
type hosts struct {
	byTag map[string]host
	have  map[string]*corev1.Service // placeholders that exist, by name
}

type host struct {
	name   string // of the placeholder
	domain string // the whole host name
	local  bool   // not seen from outside
	url    *apis.URL
}

// defaultPort is the one that a URL need not name.
const defaultPort = 80

func (h *hosts) url(tag string) *apis.URL { return h.byTag[tag].url }

func (r routes) hosts(ctx context.Context, route *servingv1.Route, s *desired.Settings) (*hosts, error) {
	placeholders, err := list(ctx, r.lean, &corev1.ServiceList{}, route.Namespace, byRoute, route.Name)
	if err != nil {
		return nil, err
	}
	h := &hosts{byTag: map[string]host{}, have: map[string]*corev1.Service{}}
	for i := range placeholders.Items {
		h.have[placeholders.Items[i].Name] = &placeholders.Items[i]
	}
	tags := []string{""}
	for _, t := range route.Spec.Traffic {
		if !slices.Contains(tags, t.Tag) {
			tags = append(tags, t.Tag)
		}
	}
	for _, tag := range tags {
		name, err := s.Hostname(route.Name, tag)
		if err != nil {
			return nil, err
		}
		var labels map[string]string
		if svc := h.have[name]; svc != nil {
			labels = svc.Labels
		}
		local := s.Local(route, labels)
		full, err := s.Host(route, name, local)
		if err != nil {
			return nil, err
		}
		domain, scheme := full, "http"
		if !local {
			scheme = s.Network.DefaultExternalScheme
		}
		if port := r.options.ExternalPort; !local && port != 0 && port != defaultPort {
			full = net.JoinHostPort(full, strconv.Itoa(int(port)))
		}
		h.byTag[tag] = host{name: name, domain: domain, local: local, url: &apis.URL{Scheme: scheme, Host: full}}
	}
	return h, nil
}

// placeholders brings the Services about that bear the names of the route and its tags, and
// takes those away that bear a name no longer used.
func (r routes) placeholders(ctx context.Context, route *servingv1.Route, h *hosts, s *desired.Settings) error {
	used := map[string]bool{}
	for _, one := range h.byTag {
		used[one.name] = true
		if err := r.placeholder(ctx, route, h.have[one.name], desired.Placeholder(route, one.name, s)); err != nil {
			return err
		}
	}
	for name, svc := range h.have {
		if used[name] || !metav1.IsControlledBy(svc, route) {
			continue
		}
		if err := r.client.Delete(ctx, svc.DeepCopy()); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("failed to delete Service: %w", err)
		}
	}
	return nil
}

func (r routes) placeholder(ctx context.Context, route *servingv1.Route, have, want *corev1.Service) (err error) {
	if have == nil {
		// One that was made a moment ago is not listed yet.
		if have, err = known[corev1.Service](ctx, r.common.services, want.Namespace, want.Name); err != nil {
			return err
		}
	}
	if have == nil {
		err := r.client.Create(ctx, want)
		switch {
		case err == nil:
			r.news.tell(route, want, "Created", "Created placeholder service %q", want.Name)
			return nil
		case !apierrors.IsAlreadyExists(err):
			return fmt.Errorf("failed to create placeholder service: %w", err)
		}
		// Either the cache is behind, or somebody else has a Service of this name.
		if have, err = known[corev1.Service](ctx, r.direct, want.Namespace, want.Name); have == nil || err != nil {
			return err
		}
	}
	if orphan(have, route) {
		if err := r.client.Delete(ctx, have.DeepCopy(), client.Preconditions{UID: &have.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("failed to delete Service: %w", err)
		}
		return r.client.Create(ctx, want)
	}
	if !metav1.IsControlledBy(have, route) {
		route.Status.MarkServiceNotOwned(want.Name)
		return fmt.Errorf("route: %q does not own Service: %q", route.Name, want.Name)
	}
	next, changed := desired.UpdateService(have, want)
	if !changed {
		return nil
	}
	if err := r.patch(ctx, have, next); err != nil {
		return fmt.Errorf("failed to update placeholder service: %w", err)
	}
	return nil
}

// orphan reports whether a Service was left by a route of the same name that is gone, and which
// the garbage collector has not come to yet.
func orphan(have *corev1.Service, route *servingv1.Route) bool {
	owner := metav1.GetControllerOf(have)
	return owner != nil && owner.Kind == "Route" && owner.Name == route.Name && owner.UID != route.UID &&
		owner.APIVersion == servingv1.SchemeGroupVersion.String()
}
