// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
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
		r.news.tell(rev, nil, "RevisionReady", "Revision becomes ready upon all resources being ready")
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
