// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// health finds out from its pods why a revision's Deployment has none that is available, and
// whether one was ready.
func (r revisions) health(ctx context.Context, rev *servingv1.Revision, d *appsv1.Deployment, s *desired.Settings) error {
	if d.Status.ReadyReplicas > 0 {
		rev.Status.MarkContainerHealthyTrue()
		return nil
	}
	if d.Spec.Replicas == nil || *d.Spec.Replicas == 0 || d.Status.AvailableReplicas > 0 {
		return nil
	}
	pods, err := list(ctx, r.lean, &corev1.PodList{}, rev.Namespace, byRevision, rev.Name)
	if err != nil {
		return err
	}
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil && blame(rev, &pods.Items[i], timedOut(d), s.Schedulable) {
			break
		}
	}
	return nil
}

// blame marks a revision with what keeps a pod from being ready, if there is such a thing.
func blame(rev *servingv1.Revision, pod *corev1.Pod, late, schedulable bool) bool {
	if c := unscheduled(pod); c != nil && !schedulable {
		rev.Status.MarkResourcesAvailableFalse(c.Reason, literal(c.Message))
		return true
	}
	for _, c := range pod.Status.ContainerStatuses {
		if t := lastEnd(&c); t != nil {
			message := t.Message
			if t.ExitCode == 0 && message == "" {
				message = "container exited with no error"
			}
			rev.Status.MarkContainerHealthyFalse(servingv1.ExitCodeReason(t.ExitCode), servingv1.RevisionContainerExitingMessage(message))
			return true
		}
		if w := c.State.Waiting; w != nil && late {
			rev.Status.MarkResourcesAvailableFalse(w.Reason, literal(w.Message))
			return true
		}
	}
	return false
}

func unscheduled(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c
		}
	}
	return nil
}

// lastEnd is how a container that is not running ended, or how it ended before this run.
func lastEnd(c *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if t := c.LastTerminationState.Terminated; t != nil {
		return t
	}
	return c.State.Terminated
}

func timedOut(d *appsv1.Deployment) bool {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse && c.Reason == servingv1.ReasonProgressDeadlineExceeded {
			return true
		}
	}
	return false
}

// podTrouble passes pods that cannot be scheduled, or of which a container has ended or
// cannot start. That all is well is told by the Deployment.
func podTrouble() predicate.TypedPredicate[*corev1.Pod] {
	return predicate.TypedFuncs[*corev1.Pod]{
		CreateFunc:  func(e event.TypedCreateEvent[*corev1.Pod]) bool { return troubled(e.Object) },
		DeleteFunc:  func(event.TypedDeleteEvent[*corev1.Pod]) bool { return false },
		GenericFunc: func(event.TypedGenericEvent[*corev1.Pod]) bool { return false },
		UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Pod]) bool {
			return troubled(e.ObjectNew) && (!troubled(e.ObjectOld) || !reflect.DeepEqual(e.ObjectOld.Status.ContainerStatuses, e.ObjectNew.Status.ContainerStatuses))
		},
	}
}

// deleted passes Services that are gone.
func deleted() predicate.TypedPredicate[*corev1.Service] {
	return predicate.TypedFuncs[*corev1.Service]{
		CreateFunc:  func(event.TypedCreateEvent[*corev1.Service]) bool { return false },
		UpdateFunc:  func(event.TypedUpdateEvent[*corev1.Service]) bool { return false },
		GenericFunc: func(event.TypedGenericEvent[*corev1.Service]) bool { return false },
	}
}

func troubled(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	if unscheduled(pod) != nil {
		return true
	}
	for i := range pod.Status.ContainerStatuses {
		if lastEnd(&pod.Status.ContainerStatuses[i]) != nil {
			return true
		}
	}
	return false
}

// deploymentChanges passes what a revision's status depends on.
func deploymentChanges() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		was, ok1 := e.ObjectOld.(*appsv1.Deployment)
		is, ok2 := e.ObjectNew.(*appsv1.Deployment)
		if !ok1 || !ok2 {
			return true
		}
		return was.Status.ReadyReplicas > 0 != (is.Status.ReadyReplicas > 0) ||
			was.Status.AvailableReplicas > 0 != (is.Status.AvailableReplicas > 0) ||
			was.Labels[desired.HashLabel] != is.Labels[desired.HashLabel] ||
			was.DeletionTimestamp.IsZero() != is.DeletionTimestamp.IsZero() ||
			!sameConditions(was.Status.Conditions, is.Status.Conditions)
	}}
}

func sameConditions(a, b []appsv1.DeploymentCondition) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Type != b[i].Type || a[i].Status != b[i].Status || a[i].Reason != b[i].Reason {
			return false
		}
	}
	return true
}
