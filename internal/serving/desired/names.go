// SPDX-License-Identifier: Apache-2.0

// Package desired builds the objects that serving objects own.
//
// Each builder is a function of the owner and the settings alone. Names, labels and
// annotations are those that Knative gives, since people select by them.
package desired

import (
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/kmeta"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

const (
	visibilityLabel = "networking.knative.dev/visibility"
	clusterLocal    = serving.VisibilityClusterLocal
	lastApplied     = "kubectl.kubernetes.io/last-applied-configuration"
	autoscaling     = "autoscaling.knative.dev"
	// RoleLabel tells the Services that this platform makes apart, and from all others.
	RoleLabel       = "networking.internal.knative.dev/serviceType"
	RolePublic      = "Public"
	RolePrivate     = "Private"
	RolePlaceholder = "Placeholder"
)

// Named is what builders ask of an owner's metadata.
type Named interface {
	GetName() string
	GetNamespace() string
	GetLabels() map[string]string
	GetAnnotations() map[string]string
}

// DeploymentName is the name of a revision's Deployment.
func DeploymentName(revision string) string { return kmeta.ChildName(revision, "-deployment") }

// PrivateName is the name of the Service that selects a revision's pods.
func PrivateName(revision string) string { return kmeta.ChildName(revision, "-private") }

func without(from map[string]string, drop ...string) map[string]string {
	out := maps.Clone(from)
	if out == nil {
		out = map[string]string{}
	}
	for _, key := range drop {
		delete(out, key)
	}
	return out
}

func with(base map[string]string, add map[string]string) map[string]string {
	out := without(base)
	maps.Copy(out, add)
	return out
}

func ownedBy(owner kmeta.OwnerRefable) []metav1.OwnerReference {
	return []metav1.OwnerReference{*kmeta.NewControllerRef(owner)}
}

// Routes are the routes that an object's annotation names.
func Routes(o Named) []string {
	if list := o.GetAnnotations()[serving.RoutesAnnotationKey]; list != "" {
		return strings.Split(list, ",")
	}
	return nil
}

// RoutesWith is the annotation's value with a route added, or taken out.
func RoutesWith(o Named, route string, in bool) string {
	names := slices.DeleteFunc(Routes(o), func(n string) bool { return n == route })
	if in {
		names = append(names, route)
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// revisionLabels are put on all that a revision owns.
func revisionLabels(r *servingv1.Revision) map[string]string {
	labels := with(without(r.Labels, serving.RouteLabelKey, serving.RoutingStateLabelKey), map[string]string{
		serving.RevisionLabelKey: r.Name,
		serving.RevisionUID:      string(r.UID),
	})
	if labels[appLabel] == "" {
		labels[appLabel] = r.Name
	}
	return labels
}

const appLabel = "app"

// routingAnnotations change while a revision lives; what it owns must not change with them.
var routingAnnotations = []string{
	serving.RevisionLastPinnedAnnotationKey, serving.RevisionPreservedAnnotationKey,
	serving.RoutingStateModifiedAnnotationKey, serving.RoutesAnnotationKey,
}

func revisionAnnotations(r *servingv1.Revision) map[string]string {
	out := without(r.Annotations, routingAnnotations...)
	maps.DeleteFunc(out, func(key, _ string) bool { return strings.HasPrefix(key, autoscaling) })
	return out
}
