// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/load"
)

// on calls saw for objects that were added or changed, lost for others.
func on[T client.Object](saw, lost func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if o, ok := obj.(T); ok {
				saw(o)
			}
		},
		UpdateFunc: func(_, obj any) {
			if o, ok := obj.(T); ok {
				saw(o)
			}
		},
		DeleteFunc: func(obj any) {
			if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			if o, ok := obj.(T); ok {
				lost(o)
			}
		},
	}
}

func (a *Autoscaler) sawPodAutoscaler(pa *autoscalingv1alpha1.PodAutoscaler) {
	if delegated(pa) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if r := a.revisions[load.Revision{Namespace: pa.Namespace, Name: pa.Name}]; r != nil {
			a.drop(r)
		}
		a.others.saw(pa)
		return
	}
	if !scaled(pa) || pa.DeletionTimestamp != nil {
		a.lostPodAutoscaler(pa)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.others.lost(pa)
	now := time.Now()
	name := load.Revision{Namespace: pa.Namespace, Name: pa.Name}
	to := a.targetAt(types.NamespacedName{Namespace: pa.Namespace, Name: pa.Spec.ScaleTargetRef.Name})
	spec := a.settings.spec(pa)
	r := a.revisions[name]
	if r != nil && r.pa.UID != pa.UID {
		a.drop(r)
		r = nil
	}
	if r != nil && r.spec == spec && r.target == to && r.pa.Generation == pa.Generation {
		r.pa = pa // most often the echo of our own status
		return
	}
	if r == nil {
		r = a.adopt(name, pa, to, now)
	}
	a.aim(r, to)
	r.pa, r.spec = pa, spec
	a.decide(r, now)
}

func (a *Autoscaler) lostPodAutoscaler(pa *autoscalingv1alpha1.PodAutoscaler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.others.lost(pa)
	if r := a.revisions[load.Revision{Namespace: pa.Namespace, Name: pa.Name}]; r != nil && r.pa.UID == pa.UID {
		a.drop(r)
	}
}

func (a *Autoscaler) sawDeployment(d *appsv1.Deployment) {
	replicas, ready := int32(1), d.Status.ReadyReplicas
	if d.Spec.Replicas != nil {
		replicas = *d.Spec.Replicas
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.targetAt(types.NamespacedName{Namespace: d.Namespace, Name: d.Name})
	same := t.exists && t.replicas == replicas && t.ready == ready
	t.exists, t.replicas, t.ready, t.version = true, replicas, ready, versionOf(d.ResourceVersion)
	switch {
	case same:
	case t.of != nil:
		a.decide(t.of, time.Now())
	default:
		a.others.moved(t.key)
	}
}

func (a *Autoscaler) lostDeployment(d *appsv1.Deployment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.targetAt(types.NamespacedName{Namespace: d.Namespace, Name: d.Name})
	*t = target{key: t.key, of: t.of}
	a.tidy(t)
	if t.of != nil {
		t.of.wanting, t.of.wrote = false, written{}
		a.decide(t.of, time.Now())
	}
}

// versionOf makes versions comparable. One that is no number never is later.
func versionOf(resourceVersion string) uint64 {
	v, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return v
}

func (a *Autoscaler) sawConfigMap(c *corev1.ConfigMap) { a.configure(c, c.Data) }

// lostConfigMap goes back to the defaults.
func (a *Autoscaler) lostConfigMap(c *corev1.ConfigMap) { a.configure(c, nil) }

func (a *Autoscaler) configure(c *corev1.ConfigMap, data map[string]string) {
	if c.Namespace != a.namespace || c.Name != configAutoscaler && c.Name != configDeployment {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.settings.with(c.Name, data)
	if err != nil {
		a.log.Warn("settings are not taken over", "error", err)
		return
	}
	a.settings = s
	now := time.Now()
	for _, r := range a.revisions {
		if spec := s.spec(r.pa); spec != r.spec {
			r.spec = spec
			a.decide(r, now)
		}
	}
	a.others.again()
}
