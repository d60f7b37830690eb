// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	autoscalingannotations "knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	autoscalerconfig "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/reconciler/autoscaling/hpa/resources"
)

// What Kubernetes' autoscaler is asked for is what upstream asks for; only that
// the least number of pods is always said.
func TestHorizontalIsUpstreams(t *testing.T) {
	for _, notes := range []map[string]string{
		{},
		{"metric": "cpu", "target": "75.5"},
		{"metric": "memory", "target": "200", "min-scale": "2", "max-scale": "5"},
		{"metric": "concurrency", "target": "7"},
		{"metric": "cpu", "target": "50", "window": "20s"},
	} {
		t.Run(fmt.Sprint(notes), func(t *testing.T) {
			pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{
				Name: "web-00001", Namespace: "team", UID: "pa-uid",
				Labels: map[string]string{"a": "b"}, Annotations: map[string]string{autoscalingannotations.ClassAnnotationKey: autoscalingannotations.HPA},
			}}
			pa.Spec.ScaleTargetRef.APIVersion, pa.Spec.ScaleTargetRef.Kind, pa.Spec.ScaleTargetRef.Name = "apps/v1", "Deployment", "web-00001-deployment"
			for key, value := range notes {
				pa.Annotations[autoscalingannotations.GroupName+"/"+key] = value
			}
			cfg, err := autoscalerconfig.NewConfigFromMap(nil)
			if err != nil {
				t.Fatal(err)
			}
			least, most := pa.ScaleBounds(cfg)
			got, want := HorizontalPodAutoscaler(pa, least, most), resources.MakeHPA(pa, cfg)
			if want.Spec.MinReplicas == nil {
				want.Spec.MinReplicas = ptr.To[int32](1)
			}
			if !equality.Semantic.DeepEqual(got, want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, want)
			}
		})
	}
}
