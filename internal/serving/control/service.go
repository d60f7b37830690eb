// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"slices"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// services makes of a Service one Configuration and one Route.
type services struct{ *common }

func addServices(m manager.Manager, c *common) error {
	// Both children bear their Service's name, whoever owns them.
	return ctrl.NewControllerManagedBy(m).Named("service").For(&servingv1.Service{}).
		Watches(&servingv1.Configuration{}, &handler.EnqueueRequestForObject{}).
		Watches(&servingv1.Route{}, &handler.EnqueueRequestForObject{}).
		WithOptions(tuned()).Complete(services{c})
}

func (s services) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	return reconcileStatus(ctx, s.common, req, &servingv1.Service{}, s.do)
}

func (s services) do(ctx context.Context, _, svc *servingv1.Service) (verdict, error) {
	settings, err := s.settings.load(ctx)
	if err != nil {
		return verdict{}, err
	}
	cfg, err := s.configuration(ctx, svc, settings)
	if cfg == nil || err != nil {
		return verdict{}, err
	}
	if cfg.Generation != cfg.Status.ObservedGeneration {
		svc.Status.MarkConfigurationNotReconciled()
		if cfg.Spec.GetTemplate().Name != "" {
			// A revision name of the user's own may be taken; the route must not lead there
			// before that is known.
			return verdict{hold: cfg.Status.ObservedGeneration == 0}, nil
		}
	} else {
		status := cfg.Status
		status.Status = verbatim(status.Status)
		svc.Status.PropagateConfigurationStatus(&status)
	}
	if taken, err := s.nameTaken(ctx, cfg); taken || err != nil {
		svc.Status.MarkRevisionNameTaken(cfg.Spec.GetTemplate().Name)
		return verdict{}, err
	}
	route, err := s.route(ctx, svc)
	if route == nil || err != nil {
		return verdict{}, err
	}
	if route.Generation != route.Status.ObservedGeneration {
		svc.Status.MarkRouteNotReconciled()
	} else {
		status := route.Status
		status.Status = verbatim(status.Status)
		svc.Status.PropagateRouteStatus(&status)
	}
	if svc.Status.GetCondition(servingv1.ServiceConditionRoutesReady).IsTrue() && !follows(route, cfg) {
		svc.Status.MarkRouteNotYetReady()
	}
	return verdict{hold: changing(cfg, route)}, nil
}

// changing reports whether a child is sure to bring news in a moment, so that a status now
// would be a write for nothing.
func changing(cfg *servingv1.Configuration, route *servingv1.Route) bool {
	if cfg.Status.ObservedGeneration == 0 || route.Status.ObservedGeneration == 0 {
		return true // just made
	}
	if !cfg.IsReady() || route.IsFailed() {
		return false
	}
	for _, t := range route.Spec.Traffic {
		if t.ConfigurationName != cfg.Name {
			return false // there may be another reason for the route to wait
		}
	}
	// The newest revision is ready, and the route has not been told yet.
	return !slices.ContainsFunc(route.Status.Traffic, func(t servingv1.TrafficTarget) bool {
		return t.RevisionName == cfg.Status.LatestReadyRevisionName
	})
}

// follows reports whether a route's status already shows what its spec, and the newest ready
// revision, ask for.
func follows(route *servingv1.Route, cfg *servingv1.Configuration) bool {
	if len(route.Spec.Traffic) != len(route.Status.Traffic) {
		return false
	}
	for i, want := range route.Spec.Traffic {
		if want.ConfigurationName == cfg.Name {
			want.RevisionName = cfg.Status.LatestReadyRevisionName
		}
		have := route.Status.Traffic[i]
		if want.RevisionName != have.RevisionName || want.Tag != have.Tag || percent(want) != percent(have) {
			return false
		}
	}
	return true
}

func percent(t servingv1.TrafficTarget) int64 {
	if t.Percent == nil {
		return 0
	}
	return *t.Percent
}
