// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// configurations makes a revision for each generation of a Configuration, and finds the
// newest one that is ready.
type configurations struct{ *common }

func addConfigurations(m manager.Manager, c *common) error {
	owned := handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &servingv1.Configuration{}, handler.OnlyControllerOwner())
	return ctrl.NewControllerManagedBy(m).Named("configuration").For(&servingv1.Configuration{}).
		Watches(&servingv1.Revision{}, owned, builder.WithPredicates(readinessChanges())).
		WithOptions(tuned()).Complete(configurations{c})
}

func (c configurations) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	return reconcileStatus(ctx, c.common, req, &servingv1.Configuration{}, c.do)
}

func (c configurations) do(ctx context.Context, before, cfg *servingv1.Configuration) (verdict, error) {
	all, err := list(ctx, c.client, &servingv1.RevisionList{}, cfg.Namespace, byConfiguration, cfg.Name)
	if err != nil {
		return verdict{}, err
	}
	latest, err := c.latestCreated(ctx, cfg, all)
	if latest == nil || err != nil {
		return verdict{}, err
	}
	cfg.Status.SetLatestCreatedRevisionName(latest.Name)
	ready := latest.Status.GetCondition(servingv1.RevisionConditionReady)
	if ready.IsFalse() {
		cfg.Status.MarkLatestCreatedFailed(latest.Name, ready.GetMessage())
		if !before.Status.GetCondition(servingv1.ConfigurationConditionReady).IsFalse() {
			c.tellFailed(cfg, latest)
		}
	}
	if newest := newestReady(cfg, latest, all); newest != nil {
		c.tellReady(cfg, newest)
		cfg.Status.SetLatestReadyRevisionName(newest.Name)
	}
	return verdict{}, nil
}

func (c configurations) tellFailed(cfg *servingv1.Configuration, latest *servingv1.Revision) {
	if latest.Name == cfg.Status.LatestReadyRevisionName {
		c.news.warn(cfg, "LatestReadyFailed", "Latest ready revision %q has failed", latest.Name)
	} else {
		c.news.warn(cfg, "LatestCreatedFailed", "Latest created revision %q has failed", latest.Name)
	}
}

func (c configurations) tellReady(cfg *servingv1.Configuration, newest *servingv1.Revision) {
	if cfg.Status.LatestReadyRevisionName == "" {
		c.news.tell(cfg, nil, "ConfigurationReady", "Configuration becomes ready")
	}
	if cfg.Status.LatestReadyRevisionName != newest.Name {
		c.news.tell(cfg, newest, "LatestReadyUpdate", "LatestReadyRevisionName updated to %q", newest.Name)
	}
}

// latestCreated is the revision of this generation, made if need be; nil if its name is taken.
func (c configurations) latestCreated(ctx context.Context, cfg *servingv1.Configuration, all *servingv1.RevisionList) (*servingv1.Revision, error) {
	if name := cfg.Spec.GetTemplate().Name; name != "" {
		rev, err := known[servingv1.Revision](ctx, c.client, cfg.Namespace, name)
		switch {
		case err != nil:
			return nil, err
		case rev != nil && isRevisionOf(cfg, rev):
			return rev, nil
		case rev != nil:
			taken := apierrors.NewAlreadyExists(serving.RevisionsResource, name)
			cfg.Status.MarkRevisionCreationFailed(taken.Error())
			return nil, nil
		}
		return c.create(ctx, cfg)
	}
	generation := desired.GenerationLabel(cfg)
	for i := range all.Items {
		if all.Items[i].Labels[serving.ConfigurationGenerationLabelKey] == generation {
			return &all.Items[i], nil
		}
	}
	// One that was made a moment ago is not listed yet.
	rev, err := known[servingv1.Revision](ctx, c.client, cfg.Namespace, desired.RevisionName(cfg))
	if err != nil || rev != nil && metav1.IsControlledBy(rev, cfg) {
		return rev, err
	}
	return c.create(ctx, cfg)
}

func (c configurations) create(ctx context.Context, cfg *servingv1.Configuration) (*servingv1.Revision, error) {
	rev := desired.Revision(cfg, time.Now())
	err := c.client.Create(ctx, rev)
	switch {
	case apierrors.IsAlreadyExists(err):
		return c.existing(ctx, cfg, rev.Name)
	case gone(err):
		return nil, err
	case err != nil:
		c.news.warn(cfg, "CreationFailed", "Failed to create Revision: %v", err)
		cfg.Status.MarkRevisionCreationFailed(err.Error())
		return nil, fmt.Errorf("failed to create Revision: %w", err)
	}
	c.news.tell(cfg, rev, "Created", "Created Revision %q", rev.Name)
	return rev, nil
}

// existing is the revision that the cache did not know. If it is not ours, that is for good.
func (c configurations) existing(ctx context.Context, cfg *servingv1.Configuration, name string) (*servingv1.Revision, error) {
	rev, err := known[servingv1.Revision](ctx, c.direct, cfg.Namespace, name)
	if rev == nil || err != nil {
		return nil, err
	}
	if metav1.IsControlledBy(rev, cfg) {
		return rev, nil
	}
	taken := apierrors.NewAlreadyExists(serving.RevisionsResource, name)
	c.news.warn(cfg, "CreationFailed", "Failed to create Revision: %v", taken)
	cfg.Status.MarkRevisionCreationFailed(taken.Error())
	return nil, nil
}

// newestReady is the newest revision that is ready, from the one known to be so on.
func newestReady(cfg *servingv1.Configuration, latest *servingv1.Revision, all *servingv1.RevisionList) *servingv1.Revision {
	var least int64
	for i := range all.Items {
		if all.Items[i].Name == cfg.Status.LatestReadyRevisionName {
			least = generationOf(&all.Items[i])
		}
	}
	candidates := []*servingv1.Revision{latest}
	for i := range all.Items {
		if r := &all.Items[i]; r.Name != latest.Name && generationOf(r) >= least {
			candidates = append(candidates, r)
		}
	}
	// The latest is first whatever its generation: a name of the user's own may lead back.
	slices.SortStableFunc(candidates[1:], func(a, b *servingv1.Revision) int {
		return cmp.Compare(generationOf(b), generationOf(a))
	})
	for _, r := range candidates {
		if r.IsReady() {
			return r
		}
	}
	return nil
}

func generationOf(r *servingv1.Revision) int64 {
	n, _ := strconv.ParseInt(r.Labels[serving.ConfigurationGenerationLabelKey], 10, 64)
	return n
}
