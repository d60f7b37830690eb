// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

func (r revisions) deployment(ctx context.Context, rev *servingv1.Revision, s *desired.Settings) (*appsv1.Deployment, error) {
	want, err := desired.Deployment(rev, s)
	if err != nil {
		return nil, err
	}
	have, err := known[appsv1.Deployment](ctx, r.client, want.Namespace, want.Name)
	if err != nil {
		return nil, err
	}
	if have == nil {
		rev.Status.MarkResourcesAvailableUnknown(servingv1.ReasonDeploying, "")
		rev.Status.MarkContainerHealthyUnknown(servingv1.ReasonDeploying, "")
		err := r.client.Create(ctx, want)
		if !apierrors.IsAlreadyExists(err) {
			if err != nil {
				return nil, fmt.Errorf("failed to create deployment %q: %w", want.Name, err)
			}
			return want, nil
		}
		// Either the cache is behind, or it is somebody else's: the cache holds but ours.
		if have, err = known[appsv1.Deployment](ctx, r.direct, want.Namespace, want.Name); have == nil || err != nil {
			return want, err
		}
	}
	if !metav1.IsControlledBy(have, rev) {
		rev.Status.MarkResourcesAvailableFalse(servingv1.ReasonNotOwned, servingv1.ResourceNotOwnedMessage("Deployment", have.Name))
		return nil, fmt.Errorf("revision: %q does not own Deployment: %q", rev.Name, have.Name)
	}
	if have.Labels[desired.HashLabel] != want.Labels[desired.HashLabel] {
		if have, err = r.updateDeployment(ctx, want); err != nil {
			return nil, err
		}
	}
	rev.Status.PropagateDeploymentStatus(literally(&have.Status))
	return have, r.health(ctx, rev, have, s)
}

func (r revisions) updateDeployment(ctx context.Context, want *appsv1.Deployment) (*appsv1.Deployment, error) {
	have := &appsv1.Deployment{}
	if err := r.direct.Get(ctx, key(want), have); err != nil {
		return nil, fmt.Errorf("get deployment %q: %w", want.Name, err)
	}
	next := desired.UpdateDeployment(have, want)
	if err := r.client.Update(ctx, next); err != nil {
		return nil, fmt.Errorf("failed to update deployment %q: %w", want.Name, err)
	}
	return next, nil
}

func (r revisions) podAutoscaler(ctx context.Context, rev *servingv1.Revision, d *appsv1.Deployment, s *desired.Settings) (*autoscalingv1alpha1.PodAutoscaler, error) {
	want := desired.PodAutoscaler(rev, d)
	have, err := known[autoscalingv1alpha1.PodAutoscaler](ctx, r.client, want.Namespace, want.Name)
	if err != nil {
		return nil, err
	}
	if have == nil {
		if err := r.client.Create(ctx, want); err != nil {
			return nil, fmt.Errorf("failed to create PA %q: %w", want.Name, err)
		}
		return want, nil
	}
	if !metav1.IsControlledBy(have, rev) {
		rev.Status.MarkResourcesAvailableFalse(servingv1.ReasonNotOwned, servingv1.ResourceNotOwnedMessage("PodAutoscaler", have.Name))
		return nil, fmt.Errorf("revision: %q does not own PodAutoscaler: %q", rev.Name, have.Name)
	}
	if next, changed := desired.UpdatePodAutoscaler(have, want); changed {
		if err := r.patch(ctx, have, next); err != nil {
			return nil, fmt.Errorf("failed to update PA %q: %w", want.Name, err)
		}
		return next, nil
	}
	return have, nil
}

// names gives the revision its Services.
func (r revisions) names(ctx context.Context, rev *servingv1.Revision, s *desired.Settings) error {
	want := []*corev1.Service{desired.PublicService(rev, s)}
	if r.options.PrivateServices {
		want = append(want, desired.PrivateService(rev))
	}
	for _, svc := range want {
		have, err := known[corev1.Service](ctx, r.services, svc.Namespace, svc.Name)
		if err != nil {
			return err
		}
		if have != nil {
			continue // there is nothing to compare: it never changes
		}
		if err := r.client.Create(ctx, svc); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("failed to create service %q: %w", svc.Name, err)
		}
	}
	return nil
}
