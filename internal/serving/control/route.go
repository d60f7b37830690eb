// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/utils/ptr"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sonagi/sonagi/internal/serving/desired"
	"github.com/sonagi/sonagi/internal/serving/traffic"
)

// routes assigns each Route's traffic and says so in its status, from which the gateway serves.
type routes struct {
	*common
	gateway *programmed
}

func (r routes) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	route := &servingv1.Route{}
	result, err := reconcileStatus(ctx, r.common, req, route, r.do)
	if route.Name != "" && route.DeletionTimestamp == nil {
		return result, err
	}
	r.gateway.forget(req.NamespacedName)
	if err == nil {
		err = r.abandon(ctx, req.NamespacedName)
	}
	return result, err
}

func (r routes) do(ctx context.Context, before, route *servingv1.Route) (verdict, error) {
	settings, err := r.settings.load(ctx)
	if err != nil {
		return verdict{}, err
	}
	if route.Generation != route.Status.ObservedGeneration {
		route.Status.MarkIngressNotConfigured()
	}
	v, err := r.assign(ctx, before, route, settings)
	if err != nil {
		return v, err
	}
	return v, r.mark(ctx, route)
}

// assign fills in the traffic, if all of it can be served.
func (r routes) assign(ctx context.Context, before, route *servingv1.Route, s *desired.Settings) (verdict, error) {
	hosts, err := r.hosts(ctx, route, s)
	if err != nil {
		if errors.Is(err, desired.ErrDomain) {
			route.Status.MarkRevisionTargetTrafficError("ErrorConfig", err.Error())
			return verdict{}, nil
		}
		return verdict{}, err
	}
	route.Status.URL = hosts.url("")
	shares, fault, err := r.shares(ctx, route)
	if err != nil {
		return verdict{}, err
	}
	if fault != nil {
		m := route.GetConditionSet().Manage(&route.Status)
		if fault.Failed {
			m.MarkFalse(servingv1.RouteConditionAllTrafficAssigned, fault.Reason, "%s", fault.Message)
		} else {
			m.MarkUnknown(servingv1.RouteConditionAllTrafficAssigned, fault.Reason, "%s", fault.Message)
		}
		return verdict{}, nil
	}
	coming, err := r.secure(ctx, route, hosts, s)
	if err != nil {
		return verdict{}, err
	}
	route.Status.URL = hosts.url("")
	served := isTrue(before, servingv1.RouteConditionIngressReady) || len(before.Status.Traffic) > 0 && r.gateway.serves(before)
	shares, wake := roll(route, shares, s, served)
	route.Status.Traffic = targets(shares, hosts)
	route.Status.MarkTrafficAssigned()
	route.Status.Address = &duckv1.Addressable{URL: apis.HTTP(route.Name + "." + route.Namespace + ".svc." + s.ClusterDomain)}
	if err := r.placeholders(ctx, route, hosts, s); err != nil {
		return verdict{}, err
	}
	same := sameRouting(before, route)
	switch {
	case rolling(route):
		route.Status.MarkIngressRolloutInProgress()
	case same && served:
		route.GetConditionSet().Manage(&route.Status).MarkTrue(servingv1.RouteConditionIngressReady)
	default:
		// The gateway learns of it from the status.
		route.Status.MarkIngressNotConfigured()
	}
	return verdict{after: wake, now: !same, hold: coming}, nil
}

// sameRouting reports whether the gateway would serve two states of a route alike.
func sameRouting(before, route *servingv1.Route) bool {
	return before.Status.ObservedGeneration == route.Generation &&
		equality.Semantic.DeepEqual(before.Status.Traffic, route.Status.Traffic) &&
		equality.Semantic.DeepEqual(before.Status.URL, route.Status.URL)
}

func targets(shares []traffic.Share, h *hosts) []servingv1.TrafficTarget {
	out := make([]servingv1.TrafficTarget, 0, len(shares))
	for _, s := range shares {
		t := servingv1.TrafficTarget{Tag: s.Tag, RevisionName: s.Revision, Percent: ptr.To(s.Percent), LatestRevision: ptr.To(s.Latest)}
		if s.Tag != "" {
			t.URL = h.url(s.Tag)
		}
		out = append(out, t)
	}
	return out
}
