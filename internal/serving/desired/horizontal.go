// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"maps"
	"math"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"knative.dev/pkg/kmeta"
	autoscalingannotations "knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
)

// HorizontalPodAutoscaler has Kubernetes scale a revision of the HPA class. The
// bounds are those of the PodAutoscaler with the settings; a greatest number of
// zero is none.
func HorizontalPodAutoscaler(pa *autoscalingv1alpha1.PodAutoscaler, least, most int32) *autoscalingv2.HorizontalPodAutoscaler {
	if most == 0 {
		most = math.MaxInt32
	}
	return &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{
			Name: pa.Name, Namespace: pa.Namespace, OwnerReferences: []metav1.OwnerReference{*kmeta.NewControllerRef(pa)},
			Labels: maps.Clone(pa.Labels), Annotations: maps.Clone(pa.Annotations),
		},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{
				APIVersion: pa.Spec.ScaleTargetRef.APIVersion, Kind: pa.Spec.ScaleTargetRef.Kind, Name: pa.Spec.ScaleTargetRef.Name,
			},
			// Kubernetes would fill in one; said here, it can be compared.
			MinReplicas: ptr.To(max(1, least)),
			MaxReplicas: most,
			Metrics:     horizontalMetrics(pa),
			Behavior:    horizontalBehavior(pa),
		},
	}
}

// horizontalMetrics are none without a target: Kubernetes then takes 80 % of
// the processor.
func horizontalMetrics(pa *autoscalingv1alpha1.PodAutoscaler) []autoscalingv2.MetricSpec {
	target, ok := pa.Target()
	if !ok {
		return nil
	}
	average := func(q *resource.Quantity) autoscalingv2.MetricTarget {
		return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: q}
	}
	of := func(name corev1.ResourceName, target autoscalingv2.MetricTarget) []autoscalingv2.MetricSpec {
		return []autoscalingv2.MetricSpec{{
			Type:     autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{Name: name, Target: target},
		}}
	}
	switch pa.Metric() {
	case autoscalingannotations.CPU:
		return of(corev1.ResourceCPU, autoscalingv2.MetricTarget{
			Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr.To(int32(math.Ceil(target))),
		})
	case autoscalingannotations.Memory:
		return of(corev1.ResourceMemory, average(resource.NewQuantity(int64(target)<<20, resource.BinarySI)))
	}
	return []autoscalingv2.MetricSpec{{
		Type: autoscalingv2.PodsMetricSourceType,
		Pods: &autoscalingv2.PodsMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: pa.Metric()},
			Target: average(resource.NewQuantity(int64(target), resource.DecimalSI)),
		},
	}}
}

func horizontalBehavior(pa *autoscalingv1alpha1.PodAutoscaler) *autoscalingv2.HorizontalPodAutoscalerBehavior {
	window, ok := pa.Window()
	if !ok {
		return nil
	}
	rules := autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To(int32(window.Seconds()))}
	return &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules.DeepCopy(), ScaleDown: rules.DeepCopy()}
}
