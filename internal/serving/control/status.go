// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// An object is a kind with conditions.
type object interface {
	duckv1.KRShaped
	client.Object
}

// A verdict is what a reconciler wants to be done with the status it has filled in.
type verdict struct {
	hold  bool          // an event that changes it once more is sure to come; do not write
	now   bool          // somebody waits for it; write at once
	after time.Duration // look again then; 0 means when something happens
}

// moment is for how long the status of an object on its way to be ready is held back: most
// are ready before.
const moment = 400 * time.Millisecond

// held knows since when statuses are held back.
type held struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// left is for how much longer to hold an object's status; 0 ends it.
func (h *held) left(id string, hold bool) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	begun, ok := h.since[id]
	if !ok && hold {
		h.since[id] = time.Now()
		return moment
	}
	if rest := moment - time.Since(begun); hold && rest > 0 {
		return rest
	}
	delete(h.since, id)
	return 0
}

// soon is when to look again after somebody else's write came first: their event is on its
// way to the cache, but may be none that is listened to.
const soon = 20 * time.Millisecond

// reconcileStatus has do bring an object about and fill in its status, and writes the status
// if that changed it.
func reconcileStatus[T object](ctx context.Context, c *common, req reconcile.Request, obj T, do func(context.Context, T, T) (verdict, error)) (reconcile.Result, error) {
	id := fmt.Sprintf("%T %s", obj, req)
	if err := c.client.Get(ctx, req.NamespacedName, obj); err != nil {
		c.held.left(id, false)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if obj.GetDeletionTimestamp() != nil {
		return reconcile.Result{}, nil
	}
	before := obj.DeepCopyObject().(T)
	begin(obj)
	v, err := do(ctx, before, obj)
	end(before, obj)
	changed := !v.hold && !equality.Semantic.DeepEqual(any(before), any(obj))
	if rest := c.held.left(id, changed && !v.now && err == nil && underWay(before, obj)); rest > 0 {
		return reconcile.Result{RequeueAfter: rest}, nil
	}
	if changed {
		if werr := c.client.updateStatus(ctx, obj); werr != nil {
			err = errors.Join(err, fmt.Errorf("update status: %w", werr))
		}
	}
	switch {
	case err == nil:
		return reconcile.Result{RequeueAfter: v.after}, nil
	case raced(err):
		return reconcile.Result{RequeueAfter: soon}, nil
	case gone(err):
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, err
}

// underWay reports whether an object was not ready, is not, and has not failed.
func underWay(before, obj object) bool {
	top := obj.GetConditionSet().GetTopLevelConditionType()
	was, is := before.GetStatus().GetCondition(top), obj.GetStatus().GetCondition(top)
	return was.IsUnknown() && is.IsUnknown()
}

// raced reports whether a write failed only because the cache was behind.
func raced(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

// gone reports whether there is nothing left to write to.
func gone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, namespaceTerminating)
}

const namespaceTerminating = "NamespaceTerminating"

// begin resets what a new generation invalidates.
func begin(obj object) {
	status, conditions := obj.GetStatus(), obj.GetConditionSet()
	m := conditions.Manage(status)
	m.InitializeConditions()
	if status.ObservedGeneration != obj.GetGeneration() {
		m.MarkUnknown(conditions.GetTopLevelConditionType(), "NewObservedGenFailure", "unsuccessfully observed a new generation")
	}
}

// end notes the generation, and lets a condition keep its time unless it changed.
func end(before, obj object) {
	status := obj.GetStatus()
	status.ObservedGeneration = obj.GetGeneration()
	for i := range status.Conditions {
		now := &status.Conditions[i]
		was := before.GetStatus().GetCondition(now.Type)
		if was == nil {
			continue
		}
		at := now.LastTransitionTime
		now.LastTransitionTime = was.LastTransitionTime
		if !reflect.DeepEqual(now, was) {
			now.LastTransitionTime = at
		}
	}
}

// patch writes the difference between two states of an object, if the one it started from is
// still there.
func (c *common) patch(ctx context.Context, from, to client.Object) error {
	return c.client.Patch(ctx, to, client.MergeFromWithOptions(from, client.MergeFromWithOptimisticLock{}))
}

func isTrue(o object, condition apis.ConditionType) bool {
	return o.GetStatus().GetCondition(condition).IsTrue()
}

// known looks an object up in a cache; it is nil if there is none.
func known[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r client.Reader, namespace, name string) (P, error) {
	obj := P(new(T))
	err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, obj)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return obj, nil
}
