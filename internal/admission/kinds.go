// SPDX-License-Identifier: Apache-2.0

package admission

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/apis"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servinglabels "knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
)

// A Resource knows its defaults and its rules.
type Resource interface {
	apis.Defaultable
	apis.Validatable
	runtime.Object
	metav1.Object
}

type kind struct {
	version string
	new     func() Resource
}

// kinds are the resources that are decided on here.
var kinds = map[schema.GroupResource]kind{
	{Group: "serving.knative.dev", Resource: "services"}:       {"v1", func() Resource { return &servingv1.Service{} }},
	{Group: "serving.knative.dev", Resource: "configurations"}: {"v1", func() Resource { return &servingv1.Configuration{} }},
	{Group: "serving.knative.dev", Resource: "revisions"}:      {"v1", func() Resource { return &servingv1.Revision{} }},
	{Group: "serving.knative.dev", Resource: "routes"}:         {"v1", func() Resource { return &servingv1.Route{} }},
	{Group: "serving.knative.dev", Resource: "domainmappings"}: {"v1beta1", func() Resource { return &servingv1beta1.DomainMapping{} }},
	{Group: "networking.internal.knative.dev", Resource: "certificates"}: {"v1alpha1", func() Resource {
		return &netv1alpha1.Certificate{}
	}},
	{Group: "autoscaling.internal.knative.dev", Resource: "podautoscalers"}: {"v1alpha1", func() Resource {
		return &autoscalingv1alpha1.PodAutoscaler{}
	}},
	{Group: "autoscaling.internal.knative.dev", Resource: "metrics"}: {"v1alpha1", func() Resource {
		return &autoscalingv1alpha1.Metric{}
	}},
}

// templatePod is a pod as a Service's or Configuration's template describes it, or nil.
func templatePod(obj Resource) *corev1.Pod {
	var spec *corev1.PodSpec
	switch o := obj.(type) {
	case *servingv1.Service:
		spec = o.Spec.Template.Spec.PodSpec.DeepCopy()
	case *servingv1.Configuration:
		if o.Labels[servinglabels.ServiceLabelKey] != "" {
			return nil // its Service was checked
		}
		spec = o.Spec.Template.Spec.PodSpec.DeepCopy()
	default:
		return nil
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		// A serving probe need not name its port; the pod's does.
		c.ReadinessProbe, c.LivenessProbe, c.StartupProbe = nil, nil, nil
		for j := range c.Ports {
			c.Ports[j].Name = servingv1.UserPortName
			if c.Ports[j].ContainerPort == 0 {
				c.Ports[j].ContainerPort = servingv1.DefaultUserPort
			}
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "dry-run-validation", Namespace: obj.GetNamespace()},
		Spec:       *spec,
	}
}
