// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/sonagi/sonagi/internal/node/pod"
)

// services knows the Services as environment variables tell of them, and no
// more: there may be thousands.
type services struct {
	synced chan struct{}

	mu    sync.Mutex
	known map[string]map[string]pod.Link // by namespace and name
}

func newServices() *services {
	return &services{synced: make(chan struct{}), known: map[string]map[string]pod.Link{}}
}

// run keeps the Services current until ctx ends.
func (s *services) run(ctx context.Context, client kubernetes.Interface) {
	_, c := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: listWatch(client, client.CoreV1().Services("").List, client.CoreV1().Services("").Watch, ""),
		ObjectType:    &corev1.Service{},
		Transform:     slimService,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { s.put(o) },
			UpdateFunc: func(_, o any) { s.put(o) },
			DeleteFunc: func(o any) { s.delete(o) },
		},
	})
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), c.HasSynced) {
			close(s.synced)
		}
	}()
	c.RunWithContext(ctx)
}

// slimService keeps of a Service what variables are made of.
func slimService(o any) (any, error) {
	svc, ok := o.(*corev1.Service)
	if !ok {
		return o, nil
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID, ResourceVersion: svc.ResourceVersion},
		Spec:       corev1.ServiceSpec{ClusterIP: svc.Spec.ClusterIP, Ports: svc.Spec.Ports},
	}, nil
}

func (s *services) put(o any) {
	svc, ok := o.(*corev1.Service)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.known[svc.Namespace]
	if of == nil {
		of = map[string]pod.Link{}
		s.known[svc.Namespace] = of
	}
	of[svc.Name] = pod.Link{Namespace: svc.Namespace, Name: svc.Name, ClusterIP: svc.Spec.ClusterIP, Ports: svc.Spec.Ports}
}

func (s *services) delete(o any) {
	if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = t.Obj
	}
	svc, ok := o.(*corev1.Service)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known[svc.Namespace], svc.Name)
	if len(s.known[svc.Namespace]) == 0 {
		delete(s.known, svc.Namespace)
	}
}

// links are the Services that a pod of the namespace may be told of. It waits
// until the Services are known at all.
func (s *services) links(ctx context.Context, namespace string) ([]pod.Link, error) {
	select {
	case <-s.synced:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []pod.Link
	for _, l := range s.known[namespace] {
		out = append(out, l)
	}
	if l, ok := s.known["default"]["kubernetes"]; ok && namespace != "default" {
		out = append(out, l)
	}
	return out, nil
}
