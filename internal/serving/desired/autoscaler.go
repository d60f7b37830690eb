// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	autoscalingannotations "knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// PodAutoscaler tells the autoscaler of a revision. Its Deployment may be nil.
// A class that the revision does not name is what the settings say at the
// moment of its creation, and no later: admission fills it in.
func PodAutoscaler(r *servingv1.Revision, d *appsv1.Deployment) *autoscalingv1alpha1.PodAutoscaler {
	return &autoscalingv1alpha1.PodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{
			Name: r.Name, Namespace: r.Namespace, OwnerReferences: ownedBy(r),
			Labels: revisionLabels(r), Annotations: without(r.Annotations, routingAnnotations...),
		},
		Spec: autoscalingv1alpha1.PodAutoscalerSpec{
			ContainerConcurrency: r.Spec.GetContainerConcurrency(),
			ScaleTargetRef:       corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: DeploymentName(r.Name)},
			ProtocolType:         r.GetProtocol(),
			Reachability:         reachability(r, d),
		},
	}
}

// UpdatePodAutoscaler is have, changed to what want says, and whether that is a change.
// Annotations that admission added stay.
func UpdatePodAutoscaler(have, want *autoscalingv1alpha1.PodAutoscaler) (*autoscalingv1alpha1.PodAutoscaler, bool) {
	out := have.DeepCopy()
	out.Spec = want.Spec
	changed := out.Spec != have.Spec
	for key := range have.Annotations {
		_, keep := want.Annotations[key]
		defaulted := key == autoscalingannotations.ClassAnnotationKey || key == autoscalingannotations.MetricAnnotationKey
		if strings.HasPrefix(key, autoscaling) && !keep && !defaulted {
			delete(out.Annotations, key)
			changed = true
		}
	}
	for key, v := range want.Annotations {
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		if out.Annotations[key] != v {
			out.Annotations[key] = v
			changed = true
		}
	}
	return out, changed
}

// reachability says whether a revision is worth its least number of pods.
func reachability(r *servingv1.Revision, d *appsv1.Deployment) autoscalingv1alpha1.ReachabilityType {
	broken := r.Status.GetCondition(servingv1.RevisionConditionResourcesAvailable).IsFalse() ||
		r.Status.GetCondition(servingv1.RevisionConditionContainerHealthy).IsFalse()
	if broken && d != nil && d.Spec.Replicas != nil && *d.Spec.Replicas > 0 && d.Status.ReadyReplicas == 0 {
		return autoscalingv1alpha1.ReachabilityUnreachable
	}
	switch r.GetRoutingState() {
	case servingv1.RoutingStateActive:
		return autoscalingv1alpha1.ReachabilityReachable
	case servingv1.RoutingStateReserve:
		return autoscalingv1alpha1.ReachabilityUnreachable
	default:
		return autoscalingv1alpha1.ReachabilityUnknown
	}
}
