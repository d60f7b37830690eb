// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// A Stage of a cold start, as it can be seen from outside.
type Stage string

// The stages in their order. What a node reports comes when it comes: nothing
// waits for it.
const (
	Scaled    Stage = "Deployment has a replica"
	Expanded  Stage = "ReplicaSet has a replica"
	Created   Stage = "Pod exists"
	Bound     Stage = "Pod is bound to the node"
	FirstByte Stage = "first byte at the client"
	Started   Stage = "Pod's container is reported to run"
	Ready     Stage = "Pod is reported to be ready"
)

var inOrder = []Stage{Scaled, Expanded, Created, Bound, FirstByte, Started, Ready}

// A Trace notes when each stage of some services was first seen.
type Trace struct {
	begin   time.Time
	want    int
	watches []watch.Interface
	readers sync.WaitGroup
	done    chan struct{} // when all are ready

	mu   sync.Mutex
	seen map[string]map[Stage]time.Duration // by service
}

// Watch watches the API from now on for what belongs to these services.
func (p *Platform) Watch(ctx context.Context, names ...string) (*Trace, error) {
	t := &Trace{want: len(names), done: make(chan struct{}), seen: map[string]map[Stage]time.Duration{}}
	apps, core := p.Core.AppsV1(), p.Core.CoreV1()
	for _, open := range []func(metav1.ListOptions) (watch.Interface, error){
		func(o metav1.ListOptions) (watch.Interface, error) { return apps.Deployments(Namespace).Watch(ctx, o) },
		func(o metav1.ListOptions) (watch.Interface, error) { return apps.ReplicaSets(Namespace).Watch(ctx, o) },
		func(o metav1.ListOptions) (watch.Interface, error) { return core.Pods(Namespace).Watch(ctx, o) },
	} {
		w, err := open(metav1.ListOptions{LabelSelector: Of(names...)})
		if err != nil {
			return nil, err
		}
		t.watches = append(t.watches, w)
		t.readers.Go(func() {
			for e := range w.ResultChan() {
				t.note(e.Object)
			}
		})
	}
	t.begin = time.Now()
	return t, nil
}

func (t *Trace) note(o runtime.Object) {
	m, ok := o.(metav1.Object)
	if !ok {
		return
	}
	service := m.GetLabels()["serving.knative.dev/service"]
	switch o := o.(type) {
	case *appsv1.Deployment:
		t.see(service, Scaled, o.Spec.Replicas != nil && *o.Spec.Replicas > 0)
	case *appsv1.ReplicaSet:
		t.see(service, Expanded, o.Spec.Replicas != nil && *o.Spec.Replicas > 0)
	case *corev1.Pod:
		t.see(service, Created, true)
		t.see(service, Bound, o.Spec.NodeName != "")
		for _, c := range o.Status.ContainerStatuses {
			t.see(service, Started, c.State.Running != nil)
		}
		for _, c := range o.Status.Conditions {
			t.see(service, Ready, c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue)
		}
	}
}

func (t *Trace) see(service string, stage Stage, is bool) {
	if !is {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen[service] == nil {
		t.seen[service] = map[Stage]time.Duration{}
	}
	if _, was := t.seen[service][stage]; was {
		return
	}
	t.seen[service][stage] = time.Since(t.begin)
	if stage == Ready {
		if t.want--; t.want == 0 {
			close(t.done)
		}
	}
}

// Answered notes a client's first byte.
func (t *Trace) Answered(service string) { t.see(service, FirstByte, true) }

// End waits for the last stage, which may come after the answer, and adds all
// to s.
func (t *Trace) End(ctx context.Context, s Stages) {
	select {
	case <-t.done:
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	for _, w := range t.watches {
		w.Stop()
	}
	t.readers.Wait()
	for _, seen := range t.seen {
		for stage, at := range seen {
			s[stage] = append(s[stage], at)
		}
	}
}

// Stages are the times since the request, of all that was traced.
type Stages map[Stage]Times

// At prints when a share q of all had come to each stage.
func (s Stages) At(q float64, what string) string {
	if len(s) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nstages, as a client that watches the API sees them (%s; the watching takes its time too)\n", what)
	before := time.Duration(0)
	for _, stage := range inOrder {
		if at := s[stage].Quantile(q); len(s[stage]) > 0 {
			fmt.Fprintf(&b, "%10s  %+9s  %s\n", Ms(at), Ms(at-before), stage)
			before = at
		}
	}
	return b.String()
}
