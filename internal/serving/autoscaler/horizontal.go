// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"context"
	"encoding/json"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// horizontal hands the revisions of the HPA class over to Kubernetes' own
// autoscaler: it keeps a HorizontalPodAutoscaler for each, and tells its
// PodAutoscaler what came of it. Nothing of it runs before there is one.
type horizontal struct {
	a *Autoscaler
	// Guarded by Autoscaler.mu: the class's PodAutoscalers by their name, these
	// names by that of the Deployment, and the queue once there is a worker.
	pas     map[types.NamespacedName]*autoscalingv1alpha1.PodAutoscaler
	targets map[types.NamespacedName]types.NamespacedName
	queue   queue

	// What was asked for last. The worker's alone.
	asked map[types.NamespacedName]autoscalingv2.HorizontalPodAutoscalerSpec
}

type queue = workqueue.TypedRateLimitingInterface[types.NamespacedName]

func newHorizontal(a *Autoscaler) *horizontal {
	return &horizontal{
		a: a, pas: map[types.NamespacedName]*autoscalingv1alpha1.PodAutoscaler{}, targets: map[types.NamespacedName]types.NamespacedName{},
		asked: map[types.NamespacedName]autoscalingv2.HorizontalPodAutoscalerSpec{},
	}
}

// delegated reports whether the PodAutoscaler is for Kubernetes' autoscaler.
func delegated(pa *autoscalingv1alpha1.PodAutoscaler) bool {
	return pa.Class() == autoscaling.HPA && pa.DeletionTimestamp == nil
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// saw takes in news of a PodAutoscaler. The caller holds Autoscaler.mu.
func (h *horizontal) saw(pa *autoscalingv1alpha1.PodAutoscaler) {
	name := nameOf(pa)
	h.pas[name] = pa
	h.targets[types.NamespacedName{Namespace: pa.Namespace, Name: pa.Spec.ScaleTargetRef.Name}] = name
	if h.queue == nil && h.a.start != nil {
		q := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](firstRetry, lastRetry))
		h.queue = q
		h.a.start(func(ctx context.Context) { h.run(ctx, q) })
	}
	h.add(name)
}

// add has the worker look at a PodAutoscaler. The caller holds Autoscaler.mu.
func (h *horizontal) add(name types.NamespacedName) {
	if h.queue != nil {
		h.queue.Add(name)
	}
}

// lost forgets a PodAutoscaler; what it owns goes with it. The caller holds
// Autoscaler.mu.
func (h *horizontal) lost(pa *autoscalingv1alpha1.PodAutoscaler) {
	if last := h.pas[nameOf(pa)]; last == nil || last.UID != pa.UID {
		return
	}
	delete(h.pas, nameOf(pa))
	delete(h.targets, types.NamespacedName{Namespace: pa.Namespace, Name: pa.Spec.ScaleTargetRef.Name})
	h.add(nameOf(pa))
}

// moved takes in that a Deployment has changed. The caller holds Autoscaler.mu.
func (h *horizontal) moved(deployment types.NamespacedName) {
	if name, ok := h.targets[deployment]; ok {
		h.add(name)
	}
}

// again looks at all of them: the settings have changed. The caller holds
// Autoscaler.mu.
func (h *horizontal) again() {
	for name := range h.pas {
		h.add(name)
	}
}

func (h *horizontal) run(ctx context.Context, q queue) {
	stop := context.AfterFunc(ctx, q.ShutDown)
	defer stop()
	changed := func(o *autoscalingv2.HorizontalPodAutoscaler) {
		if owner := metav1.GetControllerOf(o); owner != nil && owner.Kind == "PodAutoscaler" {
			q.Add(types.NamespacedName{Namespace: o.Namespace, Name: owner.Name})
		}
	}
	unwatch, err := h.a.watch(ctx, &autoscalingv2.HorizontalPodAutoscaler{}, on(changed, changed))
	if err != nil {
		if ctx.Err() == nil {
			h.a.log.Error("revisions of the class HPA are not scaled", "error", err)
		}
		return
	}
	defer unwatch()
	for {
		name, over := q.Get()
		if over {
			return
		}
		if err := h.reconcile(ctx, name); err != nil && ctx.Err() == nil {
			h.a.log.Warn("revision of the class HPA", "revision", name, "error", err)
			q.AddRateLimited(name)
		} else {
			q.Forget(name)
		}
		q.Done(name)
	}
}

// view is what reconcile reads.
type view struct {
	pa          *autoscalingv1alpha1.PodAutoscaler // nobody's but the cache's
	least, most int32
	threshold   int32 // of pods that make it initialized
	ready       int32
}

func (h *horizontal) read(name types.NamespacedName) (v view, ok bool) {
	a := h.a
	a.mu.Lock()
	defer a.mu.Unlock()
	pa := h.pas[name]
	if pa == nil {
		return v, false
	}
	v.pa = pa
	v.least, v.most = pa.ScaleBounds(a.settings.kpa)
	v.threshold = max(1, v.least)
	if !pa.Status.IsScaleTargetInitialized() {
		v.threshold = max(v.least, a.settings.spec(pa).Initial)
	}
	if t := a.targets[types.NamespacedName{Namespace: pa.Namespace, Name: pa.Spec.ScaleTargetRef.Name}]; t != nil {
		v.ready = t.ready
	}
	return v, true
}

func (h *horizontal) reconcile(ctx context.Context, name types.NamespacedName) error {
	v, ok := h.read(name)
	if !ok {
		delete(h.asked, name)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	have, err := h.apply(ctx, name, desired.HorizontalPodAutoscaler(v.pa, v.least, v.most))
	status := v.pa.Status.DeepCopy()
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		return err
	case have == nil && err == nil:
		status.MarkResourceNotOwned("HorizontalPodAutoscaler", v.pa.Name)
		err = fmt.Errorf("PodAutoscaler: %q does not own HPA: %q", v.pa.Name, v.pa.Name)
	case err != nil:
		status.MarkResourceFailedCreation("HorizontalPodAutoscaler", v.pa.Name)
	default:
		v.tell(status, have)
	}
	status.ObservedGeneration = v.pa.Generation
	if equality.Semantic.DeepEqual(status, &v.pa.Status) {
		return err
	}
	if failed := h.write(ctx, v.pa, status); failed != nil {
		return failed
	}
	return err
}

// tell says in a status what Kubernetes' autoscaler does. It never scales to
// zero, so the revision is always active.
func (v *view) tell(s *autoscalingv1alpha1.PodAutoscalerStatus, have *autoscalingv2.HorizontalPodAutoscaler) {
	s.InitializeConditions()
	s.ServiceName, s.MetricsServiceName = v.pa.Name, v.pa.Name+"-private"
	s.MarkSKSReady()
	// Its own count of pods comes only when it looks for the first time, and by
	// then a new revision has long been ready.
	if max(have.Status.CurrentReplicas, v.ready) >= v.threshold {
		s.MarkScaleTargetInitialized()
	}
	s.MarkActive()
	s.DesiredScale, s.ActualScale = ptr.To(have.Status.DesiredReplicas), ptr.To(have.Status.CurrentReplicas)
}

// apply makes the object what it should be. It returns nil when that is
// somebody else's.
func (h *horizontal) apply(ctx context.Context, name types.NamespacedName, want *autoscalingv2.HorizontalPodAutoscaler) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	have := &autoscalingv2.HorizontalPodAutoscaler{}
	err := h.a.client.Get(ctx, name, have)
	asked, known := h.asked[name]
	switch {
	case apierrors.IsNotFound(err):
		have = want.DeepCopy()
		if err := h.a.client.Create(ctx, have); err != nil {
			return nil, fmt.Errorf("failed to create HPA: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("failed to get HPA: %w", err)
	case !metav1.IsControlledBy(have, ownerOf(want)):
		return nil, nil
	// The API fills in what is not said, so the two differ even when all is
	// well; what was said before and no longer is shows in what was asked for.
	case equality.Semantic.DeepDerivative(want.Spec, have.Spec) && (!known || equality.Semantic.DeepEqual(asked, want.Spec)):
	default:
		next := have.DeepCopy()
		next.Spec, next.Labels, next.Annotations = want.Spec, want.Labels, want.Annotations
		if err := h.a.client.Update(ctx, next); err != nil {
			return nil, fmt.Errorf("failed to update HPA: %w", err)
		}
		have = next
	}
	h.asked[name] = want.Spec
	return have, nil
}

// ownerOf is the owner as far as ownership is compared.
func ownerOf(o metav1.Object) metav1.Object {
	return &metav1.ObjectMeta{UID: metav1.GetControllerOf(o).UID}
}

func (h *horizontal) write(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler, status *autoscalingv1alpha1.PodAutoscalerStatus) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pa.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	to := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: pa.Namespace, Name: pa.Name}}
	err = h.a.client.Status().Patch(ctx, to, client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another one of its name
	}
	if err != nil {
		return fmt.Errorf("writing status: %w", err)
	}
	return nil
}
