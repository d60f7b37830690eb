// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

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
	api := client.CoreV1().Services("")
	f := &feed{put: s.put, gone: s.gone, synced: func() { close(s.synced) }}
	f.run(ctx, listWatch(client, api.List, api.Watch, ""), &corev1.Service{})
}

func (s *services) put(o runtime.Object) {
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
	// The feed keeps the object only to notice that it went.
	*svc = corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID}}
}

func (s *services) gone(o runtime.Object) {
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
