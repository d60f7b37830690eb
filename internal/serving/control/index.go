// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// The indices: one change among a thousand objects must not have a thousand read.
const (
	byConfiguration = "serving.configuration" // revisions, routes
	byRevision      = "serving.revision"      // routes, pods
	byRoute         = "serving.route"         // revisions, configurations, Services, certificates
	byDomain        = "serving.domain"        // domain mappings
	byReference     = "serving.reference"     // domain mappings
)

func addIndices(serving, lean client.FieldIndexer) error {
	for _, i := range []struct {
		in   client.FieldIndexer
		of   client.Object
		name string
		keys client.IndexerFunc
	}{
		{serving, &servingv1.Revision{}, byConfiguration, configurationOfRevision},
		{serving, &servingv1.Revision{}, byRoute, routesOf},
		{serving, &servingv1.Configuration{}, byRoute, routesOf},
		{serving, &servingv1.Route{}, byConfiguration, configurationsOfRoute},
		{serving, &servingv1.Route{}, byRevision, revisionsOfRoute},
		{serving, &netv1alpha1.Certificate{}, byRoute, routeOfService},
		{serving, &servingv1beta1.DomainMapping{}, byDomain, domainOf},
		{serving, &servingv1beta1.DomainMapping{}, byReference, referenceOf},
		{lean, &corev1.Service{}, byRoute, routeOfService},
		{lean, &corev1.Pod{}, byRevision, revisionOfPod},
	} {
		if err := i.in.IndexField(context.Background(), i.of, i.name, i.keys); err != nil {
			return fmt.Errorf("index %T by %s: %w", i.of, i.name, err)
		}
	}
	return nil
}

func label(o client.Object, name string) []string {
	if v := o.GetLabels()[name]; v != "" {
		return []string{v}
	}
	return nil
}

func configurationOfRevision(o client.Object) []string {
	return label(o, serving.ConfigurationLabelKey)
}
func revisionOfPod(o client.Object) []string  { return label(o, serving.RevisionLabelKey) }
func routeOfService(o client.Object) []string { return label(o, serving.RouteLabelKey) }
func routesOf(o client.Object) []string       { return desired.Routes(o) }

func configurationsOfRoute(o client.Object) []string {
	return ofTraffic(o, func(t servingv1.TrafficTarget) string { return t.ConfigurationName })
}

func revisionsOfRoute(o client.Object) []string {
	return ofTraffic(o, func(t servingv1.TrafficTarget) string { return t.RevisionName })
}

func ofTraffic(o client.Object, name func(servingv1.TrafficTarget) string) []string {
	r, ok := o.(*servingv1.Route)
	if !ok {
		return nil
	}
	var names []string
	for _, t := range slices.Concat(r.Spec.Traffic, r.Status.Traffic) {
		if n := name(t); n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// list reads the objects of a namespace that an index finds. They are shared with the cache:
// whoever changes one copies it first.
func list[T client.ObjectList](ctx context.Context, r client.Reader, into T, namespace, index, value string) (T, error) {
	err := r.List(ctx, into, client.InNamespace(namespace), client.MatchingFields{index: value}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return into, fmt.Errorf("list %T by %s: %w", into, index, err)
	}
	return into, nil
}
