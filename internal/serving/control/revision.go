// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
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

// revisions makes of a revision a Deployment, a PodAutoscaler and its Services.
type revisions struct {
	*common
	digests *digests
}

func addRevisions(m manager.Manager, c *common, k kubernetes.Interface) error {
	bell := &doorbell{}
	resolve := c.options.ResolveDigest
	if resolve == nil {
		resolve = newRegistry(k, c.options.Aliases).resolve
	}
	r := revisions{c, newDigests(resolve, bell.ring)}
	owner := handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &servingv1.Revision{}, handler.OnlyControllerOwner())
	every := everyOne(c, func() client.ObjectList { return &servingv1.RevisionList{} }, func(l client.ObjectList) (keys []client.ObjectKey) {
		for i := range l.(*servingv1.RevisionList).Items {
			keys = append(keys, key(&l.(*servingv1.RevisionList).Items[i]))
		}
		return keys
	})
	return ctrl.NewControllerManagedBy(m).Named("revision").For(&servingv1.Revision{}).
		Watches(&appsv1.Deployment{}, owner, builder.WithPredicates(deploymentChanges())).
		Watches(&autoscalingv1alpha1.PodAutoscaler{}, owner).
		Watches(&corev1.ConfigMap{}, every, builder.WithPredicates(settingsChanges())).
		WatchesRawSource(source.Kind(c.lean, &corev1.Pod{}, ofRevision[*corev1.Pod](), podTrouble())).
		WatchesRawSource(source.Kind(c.lean, &corev1.Service{}, ofRevision[*corev1.Service](), deleted())).
		WatchesRawSource(bell.source()).
		WithOptions(tuned()).Complete(r)
}

// ofRevision has the revision reconciled that an object's label names.
func ofRevision[T client.Object]() handler.TypedEventHandler[T, reconcile.Request] {
	return handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, o T) []reconcile.Request {
		name := o.GetLabels()[serving.RevisionLabelKey]
		if name == "" {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: o.GetNamespace(), Name: name}}}
	})
}

func (r revisions) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	rev := &servingv1.Revision{}
	result, err := reconcileStatus(ctx, r.common, req, rev, r.do)
	if rev.Name == "" || rev.DeletionTimestamp != nil {
		r.digests.forget(req.NamespacedName)
	}
	return result, err
}

func (r revisions) do(ctx context.Context, before, rev *servingv1.Revision) (verdict, error) {
	settings, err := r.settings.load(ctx)
	if err != nil {
		return verdict{}, err
	}
	rev.Status.LogURL = settings.LogURL(string(rev.UID))
	if v, resolved := r.images(rev, settings); !resolved {
		return v, nil
	}
	d, err := r.deployment(ctx, rev, settings)
	if err != nil {
		return verdict{}, err
	}
	pa, err := r.podAutoscaler(ctx, rev, d, settings)
	if err != nil {
		return verdict{}, err
	}
	if err := r.names(ctx, rev, settings); err != nil {
		return verdict{}, err
	}
	rev.Status.PropagateAutoscalerStatus(&pa.Status)
	if !isTrue(before, servingv1.RevisionConditionReady) && isTrue(rev, servingv1.RevisionConditionReady) {
		r.news.tell(rev, "RevisionReady", "Revision becomes ready upon all resources being ready")
	}
	// A tag is resolved but once: what it meant must not be lost.
	resolved := len(before.Status.ContainerStatuses) != len(rev.Status.ContainerStatuses)
	return verdict{hold: onlyProgress(before, rev), now: resolved}, nil
}

// onlyProgress reports whether a revision on its way to be ready has done but a step that
// nobody waits for.
func onlyProgress(before, rev *servingv1.Revision) bool {
	if before.Status.ObservedGeneration != rev.Generation || len(before.Status.ContainerStatuses) != len(rev.Status.ContainerStatuses) ||
		before.Status.LogURL != rev.Status.LogURL {
		return false
	}
	for _, c := range rev.Status.Conditions {
		if was := before.Status.GetCondition(c.Type); c.IsFalse() || was.IsFalse() {
			return false
		}
	}
	was, is := before.Status.GetCondition(servingv1.RevisionConditionReady), rev.Status.GetCondition(servingv1.RevisionConditionReady)
	return was.IsUnknown() && is.IsUnknown() && was.GetReason() == is.GetReason()
}

// images resolves the revision's images to digests; that may take another round.
func (r revisions) images(rev *servingv1.Revision, s *desired.Settings) (verdict, bool) {
	if len(rev.Status.ContainerStatuses)+len(rev.Status.InitContainerStatuses) == len(rev.Spec.Containers)+len(rev.Spec.InitContainers) {
		r.digests.forget(key(rev))
		return verdict{}, true
	}
	a := r.digests.ask(rev, s)
	switch {
	case a.err != nil:
		if rev.Status.GetCondition(servingv1.RevisionConditionContainerHealthy).GetMessage() != a.err.Error() {
			r.news.warn(rev, "InternalError", "%v", a.err)
		}
		rev.Status.MarkContainerHealthyFalse(servingv1.ReasonContainerMissing, a.err.Error())
		return verdict{after: a.again}, false
	case a.pending:
		rev.Status.MarkResourcesAvailableUnknown(servingv1.ReasonResolvingDigests, "")
		return verdict{hold: a.fresh}, false
	}
	rev.Status.ContainerStatuses, rev.Status.InitContainerStatuses = a.containers, a.initContainers
	if rev.Status.GetCondition(servingv1.RevisionConditionContainerHealthy).GetReason() == servingv1.ReasonContainerMissing {
		rev.Status.MarkContainerHealthyUnknown(servingv1.ReasonDeploying, "")
	}
	return verdict{}, true
}

func (r revisions) deployment(ctx context.Context, rev *servingv1.Revision, s *desired.Settings) (*appsv1.Deployment, error) {
	want, err := desired.Deployment(rev, s)
	if err != nil {
		return nil, err
	}
	have, err := known[appsv1.Deployment](ctx, r.client, want.Namespace, want.Name)
	if err != nil {
		return nil, err
	}
	if have == nil {
		rev.Status.MarkResourcesAvailableUnknown(servingv1.ReasonDeploying, "")
		rev.Status.MarkContainerHealthyUnknown(servingv1.ReasonDeploying, "")
		if err := r.client.Create(ctx, want); err != nil {
			return nil, fmt.Errorf("failed to create deployment %q: %w", want.Name, err)
		}
		return want, nil
	}
	if !metav1.IsControlledBy(have, rev) {
		rev.Status.MarkResourcesAvailableFalse(servingv1.ReasonNotOwned, servingv1.ResourceNotOwnedMessage("Deployment", have.Name))
		return nil, fmt.Errorf("revision: %q does not own Deployment: %q", rev.Name, have.Name)
	}
	if have.Labels[desired.HashLabel] != want.Labels[desired.HashLabel] {
		if have, err = r.updateDeployment(ctx, want); err != nil {
			return nil, err
		}
	}
	rev.Status.PropagateDeploymentStatus(&have.Status)
	return have, r.health(ctx, rev, have, s)
}

func (r revisions) updateDeployment(ctx context.Context, want *appsv1.Deployment) (*appsv1.Deployment, error) {
	have := &appsv1.Deployment{}
	if err := r.direct.Get(ctx, key(want), have); err != nil {
		return nil, fmt.Errorf("get deployment %q: %w", want.Name, err)
	}
	next := desired.UpdateDeployment(have, want)
	if err := r.client.Update(ctx, next); err != nil {
		return nil, fmt.Errorf("failed to update deployment %q: %w", want.Name, err)
	}
	return next, nil
}

func (r revisions) podAutoscaler(ctx context.Context, rev *servingv1.Revision, d *appsv1.Deployment, s *desired.Settings) (*autoscalingv1alpha1.PodAutoscaler, error) {
	want := desired.PodAutoscaler(rev, d, s)
	have, err := known[autoscalingv1alpha1.PodAutoscaler](ctx, r.client, want.Namespace, want.Name)
	if err != nil {
		return nil, err
	}
	if have == nil {
		if err := r.client.Create(ctx, want); err != nil {
			return nil, fmt.Errorf("failed to create PA %q: %w", want.Name, err)
		}
		return want, nil
	}
	if !metav1.IsControlledBy(have, rev) {
		rev.Status.MarkResourcesAvailableFalse(servingv1.ReasonNotOwned, servingv1.ResourceNotOwnedMessage("PodAutoscaler", have.Name))
		return nil, fmt.Errorf("revision: %q does not own PodAutoscaler: %q", rev.Name, have.Name)
	}
	if next, changed := desired.UpdatePodAutoscaler(have, want); changed {
		if err := r.patch(ctx, have, next); err != nil {
			return nil, fmt.Errorf("failed to update PA %q: %w", want.Name, err)
		}
		return next, nil
	}
	return have, nil
}

// names gives the revision its Services.
func (r revisions) names(ctx context.Context, rev *servingv1.Revision, s *desired.Settings) error {
	want := []*corev1.Service{desired.PublicService(rev, s)}
	if r.options.PrivateServices {
		want = append(want, desired.PrivateService(rev))
	}
	for _, svc := range want {
		have, err := known[corev1.Service](ctx, r.services, svc.Namespace, svc.Name)
		if err != nil {
			return err
		}
		if have != nil {
			continue // there is nothing to compare: it never changes
		}
		if err := r.client.Create(ctx, svc); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("failed to create service %q: %w", svc.Name, err)
		}
	}
	return nil
}
