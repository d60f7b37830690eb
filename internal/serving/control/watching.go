// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

func addRoutes(m manager.Manager, c *common) error {
	bell := &doorbell{}
	r := routes{c, newProgrammed("", c.options.Programmed, bell.ring)}
	ofService := handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, s *corev1.Service) []reconcile.Request {
		if name := s.Labels[serving.RouteLabelKey]; name != "" {
			return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: s.Namespace, Name: name}}}
		}
		return nil
	})
	every := everyOne(c, func() client.ObjectList { return &servingv1.RouteList{} }, func(l client.ObjectList) (keys []client.ObjectKey) {
		for i := range l.(*servingv1.RouteList).Items {
			keys = append(keys, key(&l.(*servingv1.RouteList).Items[i]))
		}
		return keys
	})
	if err := m.Add(manager.RunnableFunc(func(ctx context.Context) error { return r.sweep(ctx, m, bell.ring) })); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).Named("route").For(&servingv1.Route{}).
		Watches(&servingv1.Configuration{}, handler.EnqueueRequestsFromMapFunc(r.ofConfiguration)).
		Watches(&servingv1.Revision{}, handler.EnqueueRequestsFromMapFunc(r.ofRevision), builder.WithPredicates(readinessChanges())).
		Watches(&corev1.ConfigMap{}, every, builder.WithPredicates(settingsChanges())).
		Watches(&netv1alpha1.Certificate{}, handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &servingv1.Route{}, handler.OnlyControllerOwner())).
		WatchesRawSource(source.Kind(c.lean, &corev1.Service{}, ofService)).
		WatchesRawSource(bell.source()).
		WithOptions(tuned()).Complete(r)
}

func (r routes) ofConfiguration(ctx context.Context, o client.Object) []reconcile.Request {
	return r.naming(ctx, o, byConfiguration, o.GetName())
}

func (r routes) ofRevision(ctx context.Context, o client.Object) []reconcile.Request {
	found := r.naming(ctx, o, byRevision, o.GetName())
	if cfg := o.GetLabels()[serving.ConfigurationLabelKey]; cfg != "" {
		found = append(found, r.naming(ctx, o, byConfiguration, cfg)...)
	}
	return found
}

// naming are the routes that name an object.
func (r routes) naming(ctx context.Context, o client.Object, index, value string) []reconcile.Request {
	found, err := list(ctx, r.client, &servingv1.RouteList{}, o.GetNamespace(), index, value)
	if err != nil {
		r.log.Error("routes of a changed object are not known", "object", key(o), "error", err)
		return nil
	}
	var out []reconcile.Request
	for i := range found.Items {
		out = append(out, request(&found.Items[i]))
	}
	return out
}

// sweep looks for marks of routes that were deleted while nobody watched.
func (r routes) sweep(ctx context.Context, m manager.Manager, ring func(client.ObjectKey)) error {
	if !m.GetCache().WaitForCacheSync(ctx) {
		return nil
	}
	all := &servingv1.RevisionList{}
	if err := r.client.List(ctx, all, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("look for marks of deleted routes: %w", err)
	}
	for i := range all.Items {
		for _, name := range desired.Routes(&all.Items[i]) {
			if route, err := known[servingv1.Route](ctx, r.client, all.Items[i].Namespace, name); route == nil && err == nil {
				ring(client.ObjectKey{Namespace: all.Items[i].Namespace, Name: name})
			}
		}
	}
	<-ctx.Done()
	return nil
}
