// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/config"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

func (s services) configuration(ctx context.Context, svc *servingv1.Service, settings *desired.Settings) (*servingv1.Configuration, error) {
	have, err := known[servingv1.Configuration](ctx, s.client, svc.Namespace, svc.Name)
	if err != nil {
		return nil, err
	}
	want := desired.Configuration(svc, have)
	if have == nil {
		if err := s.client.Create(ctx, want); err != nil {
			return nil, s.notCreated(svc, "Configuration", err)
		}
		s.news.tell(svc, want, "Created", "Created Configuration %q", want.Name)
		return want, nil
	}
	if !metav1.IsControlledBy(have, svc) {
		svc.Status.MarkConfigurationNotOwned(have.Name)
		return nil, nil
	}
	// Defaults that came after it was stored are no difference.
	existing := have.DeepCopy()
	existing.SetDefaults(config.ToContext(ctx, &config.Config{Defaults: settings.Defaults, Features: settings.Features}))
	if equality.Semantic.DeepEqual(want.Spec, existing.Spec) &&
		reflect.DeepEqual(want.Labels, have.Labels) && reflect.DeepEqual(want.Annotations, have.Annotations) {
		return have, nil
	}
	next := have.DeepCopy()
	next.Spec, next.Labels, next.Annotations = want.Spec, want.Labels, want.Annotations
	if err := s.patch(ctx, have, next); err != nil {
		return nil, fmt.Errorf("failed to update Configuration: %w", err)
	}
	return next, nil
}

func (s services) route(ctx context.Context, svc *servingv1.Service) (*servingv1.Route, error) {
	have, err := known[servingv1.Route](ctx, s.client, svc.Namespace, svc.Name)
	if err != nil {
		return nil, err
	}
	want := desired.Route(svc)
	if have == nil {
		if err := s.client.Create(ctx, want); err != nil {
			return nil, s.notCreated(svc, "Route", err)
		}
		s.news.tell(svc, want, "Created", "Created Route %q", want.Name)
		return want, nil
	}
	if !metav1.IsControlledBy(have, svc) {
		svc.Status.MarkRouteNotOwned(have.Name)
		return nil, nil
	}
	existing := have.DeepCopy()
	existing.SetDefaults(ctx)
	if equality.Semantic.DeepEqual(want.Spec, existing.Spec) &&
		reflect.DeepEqual(want.Labels, have.Labels) && equality.Semantic.DeepEqual(want.Annotations, have.Annotations) {
		return have, nil
	}
	next := have.DeepCopy()
	next.Spec, next.Labels, next.Annotations = want.Spec, want.Labels, want.Annotations
	if err := s.patch(ctx, have, next); err != nil {
		return nil, fmt.Errorf("failed to update Route: %w", err)
	}
	return next, nil
}

func (s services) notCreated(svc *servingv1.Service, kind string, err error) error {
	if !raced(err) && !gone(err) {
		s.news.warn(svc, "CreationFailed", "Failed to create %s %q: %v", kind, svc.Name, err)
	}
	return fmt.Errorf("failed to create %s: %w", kind, err)
}

// nameTaken reports whether the revision name that the user brought belongs to another.
func (s services) nameTaken(ctx context.Context, cfg *servingv1.Configuration) (bool, error) {
	name := cfg.Spec.GetTemplate().Name
	if name == "" {
		return false, nil
	}
	rev, err := known[servingv1.Revision](ctx, s.client, cfg.Namespace, name)
	if rev == nil || err != nil {
		return false, err
	}
	return !isRevisionOf(cfg, rev), nil
}

// isRevisionOf reports whether a revision is the one that a Configuration asks for by name.
func isRevisionOf(cfg *servingv1.Configuration, rev *servingv1.Revision) bool {
	return metav1.IsControlledBy(rev, cfg) &&
		(rev.Labels[serving.ConfigurationGenerationLabelKey] == desired.GenerationLabel(cfg) ||
			equality.Semantic.DeepEqual(cfg.Spec.GetTemplate().Spec, rev.Spec))
}
