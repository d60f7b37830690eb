// SPDX-License-Identifier: Apache-2.0

// Package kube connects to the API: client, cache, apply, conditions.
//
// Law: every reconciler of this process shares one manager, and so one cache
// per kind; what nobody reads (managed fields) is dropped before it is kept.
package kube

import (
	"context"
	"fmt"
	"log/slog"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/telemetry"
)

// Scheme knows the kinds of Kubernetes and of Knative Serving.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, servingv1.AddToScheme, servingv1beta1.AddToScheme, autoscalingv1alpha1.AddToScheme, netv1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("scheme: %w", err)
		}
	}
	return s, nil
}

// NewClient reads and writes without a cache, and can watch.
func NewClient(cfg *rest.Config) (client.WithWatch, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: s})
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	return c, nil
}

// SystemNamespace is where Serving's ConfigMaps are.
const SystemNamespace = "knative-serving"

// NewManager is what reconcilers of this process share. It serves nothing by
// itself (metrics and health are the process's) and elects nobody: on one
// machine there is one.
func NewManager(cfg *rest.Config, log *slog.Logger) (manager.Manager, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	// Each kind chooses its own encoding: custom resources have no protocol buffers.
	cfg = rest.CopyConfig(cfg)
	cfg.ContentType, cfg.AcceptContentTypes = "", ""
	ofRevisions, err := labels.Parse(serving.RevisionLabelKey)
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	skip := true // a test starts several managers in one process
	m, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme:  s,
		Logger:  telemetry.Logr(log),
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{DefaultTransform: Lean, ByObject: map[client.Object]cache.ByObject{
			&corev1.ConfigMap{}:  {Namespaces: map[string]cache.Config{SystemNamespace: {}}},
			&appsv1.Deployment{}: {Label: ofRevisions},
		}},
		Controller: config.Controller{SkipNameValidation: &skip},
	})
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	return m, nil
}

// Task runs the manager; it is ready when the caches are filled.
func Task(name string, m manager.Manager) run.Task {
	return run.Task{Name: name, Run: m.Start, Ready: func(ctx context.Context) error {
		select {
		case <-m.Elected(): // closed once the caches are filled and the reconcilers start
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

// Lean drops from an object what no controller reads before it is cached. The
// API server keeps the managed fields of an object that is written back without.
func Lean(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}
