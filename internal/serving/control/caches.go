// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	"knative.dev/networking/pkg/apis/networking"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/serving/desired"
)

func newCommon(m manager.Manager, o Options) (*common, error) {
	cfg := unlimited(m.GetConfig())
	lean, err := leanCache(m, cfg)
	if err != nil {
		return nil, err
	}
	if err := m.Add(leanRunner{lean}); err != nil {
		return nil, err
	}
	writer, err := client.New(cfg, client.Options{
		Scheme: m.GetScheme(), Mapper: m.GetRESTMapper(), Cache: &client.CacheOptions{Reader: m.GetCache()},
	})
	if err != nil {
		return nil, err
	}
	memory := newMemory()
	err = errors.Join(
		memory.follow(lean, &corev1.Service{}),
		memory.follow(m.GetCache(), &servingv1.Service{}, &servingv1.Configuration{}, &servingv1.Revision{}, &servingv1.Route{},
			&autoscalingv1alpha1.PodAutoscaler{}, &appsv1.Deployment{}))
	if err != nil {
		return nil, err
	}
	return &common{
		client: fresh{writer, memory}, services: freshReader{lean, memory}, lean: lean, direct: m.GetAPIReader(), options: o, log: o.Log,
		settings: &settingsSource{reader: m.GetCache(), clusterDomain: o.ClusterDomain, log: o.Log},
		held:     &held{since: map[string]time.Time{}},
		news:     newNews(m.GetEventRecorder("serving")),
	}, nil
}

// unlimited takes the brake off a client: the API server decides how much it can take. It
// also leaves the encoding to the kind: only built-in ones have protocol buffers.
func unlimited(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst, cfg.RateLimiter = -1, 0, nil
	cfg.ContentType, cfg.AcceptContentTypes = "", ""
	return cfg
}

// leanCache holds the pods, Services and certificates' Secrets of serving, and of the pods
// little more than their status.
func leanCache(m manager.Manager, cfg *rest.Config) (cache.Cache, error) {
	pods, err := labels.NewRequirement(serving.RevisionLabelKey, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	services, err := labels.NewRequirement(desired.RoleLabel, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	secrets, err := labels.NewRequirement(networking.CertificateUIDLabelKey, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	return cache.New(cfg, cache.Options{
		Scheme: m.GetScheme(), Mapper: m.GetRESTMapper(), DefaultTransform: kube.Lean,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:     {Label: labels.NewSelector().Add(*pods), Transform: leanPod},
			&corev1.Service{}: {Label: labels.NewSelector().Add(*services)},
			&corev1.Secret{}:  {Label: labels.NewSelector().Add(*secrets)},
		},
	})
}

func leanPod(obj any) (any, error) {
	if pod, ok := obj.(*corev1.Pod); ok {
		pod.Spec = corev1.PodSpec{}
		pod.Annotations, pod.OwnerReferences = nil, nil
	}
	return kube.Lean(obj)
}

// leanRunner has the manager start the cache with its own, before any reconciler.
type leanRunner struct{ cache.Cache }

func (l leanRunner) GetCache() cache.Cache { return l.Cache }
