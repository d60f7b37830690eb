// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// mark notes on configurations and revisions that this route leads to them, or no longer does.
// A revision that no route leads to needs no pods, and may be deleted one day.
func (r routes) mark(ctx context.Context, route *servingv1.Route) error {
	configs, revs, err := r.ledTo(ctx, route)
	if err != nil {
		return err
	}
	settled := isTrue(route, servingv1.RouteConditionReady) || route.Status.GetCondition(servingv1.RouteConditionReady).IsFalse()
	return r.remark(ctx, client.ObjectKeyFromObject(route), configs, revs, settled)
}

// abandon takes all marks of a route away that is gone.
func (r routes) abandon(ctx context.Context, route client.ObjectKey) error {
	return r.remark(ctx, route, nil, nil, true)
}

// ledTo are the names of configurations and revisions that a route leads to, or is about to.
func (r routes) ledTo(ctx context.Context, route *servingv1.Route) (configs, revs []string, err error) {
	for _, t := range slices.Concat(route.Status.Traffic, route.Spec.Traffic) {
		cfgName := t.ConfigurationName
		if t.RevisionName != "" {
			rev, err := known[servingv1.Revision](ctx, r.client, route.Namespace, t.RevisionName)
			if err != nil {
				return nil, nil, err
			}
			if rev == nil {
				continue
			}
			revs = append(revs, rev.Name)
			if owner := metav1.GetControllerOf(rev); owner != nil && owner.Kind == "Configuration" {
				cfgName = owner.Name
			}
		}
		if cfgName == "" {
			continue
		}
		cfg, err := known[servingv1.Configuration](ctx, r.client, route.Namespace, cfgName)
		if err != nil {
			return nil, nil, err
		}
		if cfg == nil {
			continue
		}
		configs = append(configs, cfg.Name)
		if cfg.Status.LatestCreatedRevisionName != "" && t.LatestRevision != nil && *t.LatestRevision {
			revs = append(revs, cfg.Status.LatestCreatedRevisionName)
		}
	}
	return configs, revs, nil
}

// remark puts the route's mark on these objects, and if drop, takes it from all others.
func (r routes) remark(ctx context.Context, route client.ObjectKey, configs, revs []string, drop bool) error {
	markedConfigs, err := list(ctx, r.client, &servingv1.ConfigurationList{}, route.Namespace, byRoute, route.Name)
	if err != nil {
		return err
	}
	markedRevs, err := list(ctx, r.client, &servingv1.RevisionList{}, route.Namespace, byRoute, route.Name)
	if err != nil {
		return err
	}
	if drop {
		for i := range markedConfigs.Items {
			if c := &markedConfigs.Items[i]; !slices.Contains(configs, c.Name) {
				if err := r.setMark(ctx, c, route.Name, false); err != nil {
					return err
				}
			}
		}
		for i := range markedRevs.Items {
			if rev := &markedRevs.Items[i]; !slices.Contains(revs, rev.Name) {
				if err := r.setMark(ctx, rev, route.Name, false); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range configs {
		if err := markNamed[servingv1.Configuration](ctx, r, route, name); err != nil {
			return err
		}
	}
	for _, name := range revs {
		if err := markNamed[servingv1.Revision](ctx, r, route, name); err != nil {
			return err
		}
	}
	return nil
}

func markNamed[T any, P interface {
	*T
	client.Object
}](ctx context.Context, r routes, route client.ObjectKey, name string) error {
	o, err := known[T, P](ctx, r.client, route.Namespace, name)
	if o == nil || err != nil {
		return err
	}
	return r.setMark(ctx, o, route.Name, true)
}

// setMark puts a route's mark on an object or takes it away, with one write or none.
func (r routes) setMark(ctx context.Context, o client.Object, route string, on bool) error {
	next := o.DeepCopyObject().(client.Object)
	annotations := next.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	if list := desired.RoutesWith(o, route, on); list != "" {
		annotations[serving.RoutesAnnotationKey] = list
	} else {
		delete(annotations, serving.RoutesAnnotationKey)
	}
	next.SetAnnotations(annotations)
	if rev, ok := next.(*servingv1.Revision); ok {
		want := servingv1.RoutingStateReserve
		if len(desired.Routes(rev)) > 0 {
			want = servingv1.RoutingStateActive
		}
		if rev.GetRoutingState() != want {
			rev.SetRoutingState(want, time.Now())
		}
	}
	if annotations[serving.RoutesAnnotationKey] == o.GetAnnotations()[serving.RoutesAnnotationKey] &&
		next.GetLabels()[serving.RoutingStateLabelKey] == o.GetLabels()[serving.RoutingStateLabelKey] {
		return nil
	}
	if err := r.patch(ctx, o, next); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("mark %s: %w", o.GetName(), err)
	}
	return nil
}
