// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// collector deletes revisions that outlive their use.
type collector struct{ *common }

func addCollector(m manager.Manager, c *common) error {
	every := everyOne(c, func() client.ObjectList { return &servingv1.ConfigurationList{} }, func(l client.ObjectList) (keys []client.ObjectKey) {
		for i := range l.(*servingv1.ConfigurationList).Items {
			keys = append(keys, key(&l.(*servingv1.ConfigurationList).Items[i]))
		}
		return keys
	})
	owned := handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &servingv1.Configuration{}, handler.OnlyControllerOwner())
	return ctrl.NewControllerManagedBy(m).Named("collector").For(&servingv1.Configuration{}).
		Watches(&servingv1.Revision{}, owned, builder.WithPredicates(readinessChanges())).
		Watches(&corev1.ConfigMap{}, every, builder.WithPredicates(settingsChanges())).
		WithOptions(tuned()).Complete(collector{c})
}

func (c collector) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	settings, err := c.settings.load(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	revs, err := list(ctx, c.client, &servingv1.RevisionList{}, req.Namespace, byConfiguration, req.Name)
	if err != nil || int64(len(revs.Items)) <= settings.GC.Min {
		return reconcile.Result{}, err // most end here, before anything is copied
	}
	cfg, err := known[servingv1.Configuration](ctx, c.client, req.Namespace, req.Name)
	if cfg == nil || cfg.DeletionTimestamp != nil || err != nil {
		return reconcile.Result{}, err
	}
	outlived, next := outliving(cfg, revs.Items, settings.GC, time.Now())
	for _, rev := range outlived {
		if err := c.client.Delete(ctx, rev.DeepCopy()); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("delete revision %q: %w", rev.Name, err)
		}
		c.log.Info("revision deleted that no route led to", "revision", key(rev))
	}
	return reconcile.Result{RequeueAfter: next}, nil
}

// outliving are the revisions to delete, and the time until there will be another one.
func outliving(cfg *servingv1.Configuration, all []servingv1.Revision, keep desired.Retention, now time.Time) ([]*servingv1.Revision, time.Duration) {
	if keep.Max < 0 && keep.SinceCreate < 0 && keep.SinceActive < 0 {
		return nil, 0
	}
	var idle []*servingv1.Revision
	ready := readyGeneration(cfg, all)
	for i := range all {
		// One that is newer than the latest ready one is on its way into use.
		if r := &all[i]; r.DeletionTimestamp == nil && !inUse(r, cfg) && generation(r) <= ready {
			idle = append(idle, r)
		}
	}
	slices.SortFunc(idle, func(a, b *servingv1.Revision) int {
		// Times are whole seconds, in which there is room for several revisions.
		return cmp.Or(lastActive(a).Compare(lastActive(b)), cmp.Compare(generation(a), generation(b)))
	})
	var out, rest []*servingv1.Revision
	next := time.Duration(0)
	for _, r := range idle {
		left, ends := ageLeft(r, keep, now)
		switch {
		case ends && left <= 0 && int64(len(idle)-len(out)) > keep.Min:
			out = append(out, r)
			continue
		case ends && left > 0 && int64(len(idle)-len(out)) > keep.Min && (next == 0 || left < next):
			next = left
		}
		rest = append(rest, r)
	}
	if keep.Max >= 0 {
		for int64(len(rest)) > keep.Max {
			out, rest = append(out, rest[0]), rest[1:]
		}
	}
	return out, next
}

// ageLeft is how long a revision is kept for its age, and whether that has an end.
func ageLeft(r *servingv1.Revision, keep desired.Retention, now time.Time) (time.Duration, bool) {
	if keep.SinceCreate < 0 && keep.SinceActive < 0 {
		return 0, false
	}
	var until time.Time
	if keep.SinceCreate >= 0 {
		until = r.CreationTimestamp.Add(keep.SinceCreate)
	}
	if keep.SinceActive >= 0 {
		if t := lastActive(r).Add(keep.SinceActive); t.After(until) {
			until = t
		}
	}
	return until.Sub(now), true
}

func inUse(r *servingv1.Revision, cfg *servingv1.Configuration) bool {
	return r.Name == cfg.Status.LatestReadyRevisionName ||
		strings.EqualFold(r.Annotations[serving.RevisionPreservedAnnotationKey], "true") ||
		r.GetRoutingState() != servingv1.RoutingStateReserve
}

// readyGeneration is the generation of the latest ready revision, or 0.
func readyGeneration(cfg *servingv1.Configuration, all []servingv1.Revision) int {
	for i := range all {
		if all[i].Name == cfg.Status.LatestReadyRevisionName {
			return generation(&all[i])
		}
	}
	return 0
}

// generation is that of the configuration which the revision was made from, or 0.
func generation(r *servingv1.Revision) int {
	n, err := strconv.Atoi(r.Labels[serving.ConfigurationGenerationLabelKey])
	if err != nil {
		return 0
	}
	return n
}

func lastActive(r *servingv1.Revision) time.Time {
	if t := r.GetRoutingStateModified(); !t.IsZero() {
		return t
	}
	return r.CreationTimestamp.Time
}
