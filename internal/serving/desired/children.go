// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"fmt"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/kmeta"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// Configuration is the Configuration of a Service. Other routes that the one there already is
// part of stay in its annotation.
func Configuration(svc *servingv1.Service, have *servingv1.Configuration) *servingv1.Configuration {
	drop := append([]string{lastApplied}, serving.RolloutDurationAnnotation...)
	annotations := without(svc.Annotations, drop...)
	existing := &servingv1.Configuration{}
	if have != nil {
		existing.Annotations = have.Annotations
	}
	annotations[serving.RoutesAnnotationKey] = RoutesWith(existing, svc.Name, true)
	return &servingv1.Configuration{
		ObjectMeta: metav1.ObjectMeta{
			Name: svc.Name, Namespace: svc.Namespace, OwnerReferences: ownedBy(svc), Annotations: annotations,
			Labels: with(svc.Labels, map[string]string{
				serving.ServiceLabelKey:    svc.Name,
				serving.ServiceUIDLabelKey: string(svc.UID),
			}),
		},
		Spec: *svc.Spec.ConfigurationSpec.DeepCopy(),
	}
}

// Route is the Route of a Service.
func Route(svc *servingv1.Service) *servingv1.Route {
	r := &servingv1.Route{
		ObjectMeta: metav1.ObjectMeta{
			Name: svc.Name, Namespace: svc.Namespace, OwnerReferences: ownedBy(svc),
			Annotations: without(svc.Annotations, lastApplied),
			Labels:      with(svc.Labels, map[string]string{serving.ServiceLabelKey: svc.Name}),
		},
		Spec: *svc.Spec.RouteSpec.DeepCopy(),
	}
	for i := range r.Spec.Traffic {
		if r.Spec.Traffic[i].RevisionName == "" {
			r.Spec.Traffic[i].ConfigurationName = svc.Name
		}
	}
	return r
}

// Revision is the revision for a Configuration's generation.
func Revision(c *servingv1.Configuration, now time.Time) *servingv1.Revision {
	template := c.Spec.GetTemplate().DeepCopy()
	r := &servingv1.Revision{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	r.Namespace = c.Namespace
	if r.Name == "" {
		r.Name = RevisionName(c)
	}
	r.SetRoutingState(servingv1.RoutingStatePending, now)
	r.Labels = with(r.Labels, revisionIdentity(c))
	r.Annotations = with(r.Annotations, nil)
	if by, ok := c.Annotations[serving.UpdaterAnnotation]; ok {
		r.Annotations[serving.CreatorAnnotation] = by
	}
	if routes, ok := c.Annotations[serving.RoutesAnnotationKey]; ok {
		// Known to be routed to: its first pods need not wait for the route to say so.
		r.Annotations[serving.RoutesAnnotationKey] = routes
		r.SetRoutingState(servingv1.RoutingStateActive, now)
	}
	r.OwnerReferences = append(r.OwnerReferences, ownedBy(c)...)
	return r
}

// RevisionName is the name of a Configuration's newest revision, unless the user brings one.
func RevisionName(c *servingv1.Configuration) string {
	return kmeta.ChildName(c.Name, fmt.Sprintf("-%05d", c.Generation))
}

func revisionIdentity(c *servingv1.Configuration) map[string]string {
	labels := map[string]string{
		serving.ConfigurationLabelKey:           c.Name,
		serving.ConfigurationGenerationLabelKey: GenerationLabel(c),
	}
	for key, value := range map[string]string{
		serving.ConfigurationUIDLabelKey: string(c.UID),
		serving.ServiceLabelKey:          c.Labels[serving.ServiceLabelKey],
		serving.ServiceUIDLabelKey:       c.Labels[serving.ServiceUIDLabelKey],
	} {
		if value != "" {
			labels[key] = value
		}
	}
	return labels
}

// GenerationLabel is what a Configuration's newest revision carries as its generation.
func GenerationLabel(c *servingv1.Configuration) string {
	return strconv.FormatInt(c.Generation, 10)
}
