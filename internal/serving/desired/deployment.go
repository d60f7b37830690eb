// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	autoscalingannotations "knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// HashLabel holds the hash of a Deployment as it was built: as long as it is the same there
// is nothing to compare, and nothing to write.
const HashLabel = serving.RevisionDeploymentHashLabelKey

// Deployment is the Deployment of a revision whose images are resolved. Its replicas are those
// it begins with; they belong to the autoscaler from then on.
func Deployment(r *servingv1.Revision, s *Settings) (*appsv1.Deployment, error) {
	labels := revisionLabels(r)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Name: DeploymentName(r.Name), Namespace: r.Namespace, OwnerReferences: ownedBy(r),
			Labels: labels, Annotations: revisionAnnotations(r),
		},
		Spec: appsv1.DeploymentSpec{
			Replicas:                ptr.To(initialScale(r, s)),
			Selector:                &metav1.LabelSelector{MatchLabels: map[string]string{serving.RevisionUID: string(r.UID)}},
			ProgressDeadlineSeconds: ptr.To(progressDeadline(r, s)),
			RevisionHistoryLimit:    ptr.To[int32](0),
			Strategy: appsv1.DeploymentStrategy{
				Type: appsv1.RollingUpdateDeploymentStrategyType,
				// No pod goes before its successor is ready.
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: ptr.To(intstr.FromInt32(0))},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: without(labels), Annotations: podAnnotations(r)},
				Spec:       podSpec(r, s),
			},
		},
	}
	hash, err := hashOf(d)
	if err != nil {
		return nil, err
	}
	d.Labels[HashLabel] = hash
	return d, nil
}

// UpdateDeployment is have, changed to what want says. The replicas, the selector, which
// cannot change, and metadata of others stay.
func UpdateDeployment(have, want *appsv1.Deployment) *appsv1.Deployment {
	out := have.DeepCopy()
	out.Spec = *want.Spec.DeepCopy()
	out.Spec.Replicas, out.Spec.Selector = have.Spec.Replicas, have.Spec.Selector
	out.Labels, out.Annotations = merged(want.Labels, have.Labels), merged(want.Annotations, have.Annotations)
	was, template := have.Spec.Template, &out.Spec.Template
	template.Labels, template.Annotations = merged(template.Labels, was.Labels), merged(template.Annotations, was.Annotations)
	return out
}

func initialScale(r *servingv1.Revision, s *Settings) int32 {
	if _, v, ok := autoscalingannotations.InitialScaleAnnotation.Get(r.Annotations); ok {
		if n, err := strconv.ParseInt(v, 10, 32); err == nil {
			return int32(n)
		}
	}
	return s.InitialScale
}

func progressDeadline(r *servingv1.Revision, s *Settings) int32 {
	if _, v, ok := serving.ProgressDeadlineAnnotation.Get(r.Annotations); ok {
		if d, err := time.ParseDuration(v); err == nil {
			return int32(d.Seconds())
		}
	}
	return int32(s.ProgressDeadline.Seconds())
}

// hashOf hashes what a Deployment asks for, with but one of the many ways to write it.
func hashOf(d *appsv1.Deployment) (string, error) {
	h := fnv.New64a()
	spec := d.Spec
	spec.Replicas = nil // the autoscaler's
	if err := json.NewEncoder(h).Encode([]any{spec, d.Labels, d.Annotations}); err != nil {
		return "", fmt.Errorf("hash deployment %s: %w", d.Name, err)
	}
	return strconv.FormatUint(h.Sum64(), 36), nil
}
