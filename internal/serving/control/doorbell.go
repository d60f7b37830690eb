// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"sync"

	"k8s.io/client-go/util/workqueue"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// A doorbell has an object reconciled for something that did not happen in the API.
type doorbell struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

// source is what the controller that owns the doorbell watches.
func (d *doorbell) source() source.Source {
	return source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.queue = q
		return nil
	})
}

func (d *doorbell) ring(k client.ObjectKey) {
	d.mu.Lock()
	q := d.queue
	d.mu.Unlock()
	if q != nil {
		q.Add(reconcile.Request{NamespacedName: k})
	}
}

// settingsChanges passes changes of ConfigMaps with settings.
func settingsChanges() predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool {
		_, ok := settingsReaders[o.GetName()]
		return ok && o.GetNamespace() == settingsNamespace
	})
}

// everyOne has all objects of a kind reconciled with the settings that have changed.
func everyOne(c *common, newList func() client.ObjectList, items func(client.ObjectList) []client.ObjectKey) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		c.settings.invalidate()
		all := newList()
		if c.client.List(ctx, all, client.UnsafeDisableDeepCopy) != nil {
			return nil
		}
		var out []reconcile.Request
		for _, k := range items(all) {
			out = append(out, reconcile.Request{NamespacedName: k})
		}
		return out
	})
}

// readinessChanges passes what matters of a revision to those above it: that it is there,
// whether it is ready and why not, and who routes to it. How many pods it has does not.
func readinessChanges() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		was, ok1 := e.ObjectOld.(*servingv1.Revision)
		is, ok2 := e.ObjectNew.(*servingv1.Revision)
		if !ok1 || !ok2 {
			return true
		}
		return !sameCondition(was, is, servingv1.RevisionConditionReady) || was.IsReady() != is.IsReady() ||
			was.Generation != is.Generation || was.DeletionTimestamp.IsZero() != is.DeletionTimestamp.IsZero() ||
			was.GetRoutingState() != is.GetRoutingState()
	}}
}

// sameCondition reports whether a condition says the same of two states of an object.
func sameCondition(was, is object, name apis.ConditionType) bool {
	a, b := was.GetStatus().GetCondition(name), is.GetStatus().GetCondition(name)
	if a == nil || b == nil {
		return a == b
	}
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}
