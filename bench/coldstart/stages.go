// SPDX-License-Identifier: Apache-2.0

package main

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

	"github.com/sonagi/sonagi/bench/measure"
)

// The stages of a cold start that can be seen from outside, in their order.
const (
	scaled    = "Deployment has a replica"
	expanded  = "ReplicaSet has a replica"
	created   = "Pod exists"
	bound     = "Pod is bound to the node"
	started   = "Pod's container is reported to run"
	ready     = "Pod is reported to be ready"
	firstByte = "first byte at the client"
)

// order prints what waits for the request first: reports come when they come.
var order = []string{scaled, expanded, created, bound, firstByte, started, ready}

// trace notes when each stage was first seen.
type trace struct {
	mu      sync.Mutex
	seen    map[string]time.Time
	watches []watch.Interface
	readers sync.WaitGroup
	ready   chan struct{}
}

// watchStages watches the API from now on.
func watchStages(ctx context.Context, p *measure.Platform) (*trace, error) {
	t := &trace{seen: map[string]time.Time{}, ready: make(chan struct{})}
	apps, core := p.Core.AppsV1(), p.Core.CoreV1()
	// Without what there is: only what changes.
	for _, open := range []func(metav1.ListOptions) (watch.Interface, error){
		func(o metav1.ListOptions) (watch.Interface, error) {
			return apps.Deployments(measure.Namespace).Watch(ctx, o)
		},
		func(o metav1.ListOptions) (watch.Interface, error) {
			return apps.ReplicaSets(measure.Namespace).Watch(ctx, o)
		},
		func(o metav1.ListOptions) (watch.Interface, error) {
			return core.Pods(measure.Namespace).Watch(ctx, o)
		},
	} {
		w, err := open(metav1.ListOptions{LabelSelector: "serving.knative.dev/service=cold"})
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
	return t, nil
}

func (t *trace) note(o runtime.Object) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	see := func(stage string, is bool) {
		if _, was := t.seen[stage]; is && !was {
			t.seen[stage] = now
			if stage == ready {
				close(t.ready)
			}
		}
	}
	switch o := o.(type) {
	case *appsv1.Deployment:
		see(scaled, o.Spec.Replicas != nil && *o.Spec.Replicas > 0)
	case *appsv1.ReplicaSet:
		see(expanded, o.Spec.Replicas != nil && *o.Spec.Replicas > 0)
	case *corev1.Pod:
		see(created, true)
		see(bound, o.Spec.NodeName != "")
		for _, c := range o.Status.ContainerStatuses {
			see(started, c.State.Running != nil)
		}
		for _, c := range o.Status.Conditions {
			see(ready, c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue)
		}
	}
}

// end waits for the last stage, which may come after the answer, and returns all.
func (t *trace) end(ctx context.Context) map[string]time.Time {
	select {
	case <-t.ready:
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	for _, w := range t.watches {
		w.Stop()
	}
	t.readers.Wait()
	return t.seen
}

// stages are the times since the request, of all traced runs.
type stages map[string]measure.Times

func (s stages) add(seen map[string]time.Time, begin time.Time, first time.Duration) {
	for stage, at := range seen {
		s[stage] = append(s[stage], at.Sub(begin))
	}
	s[firstByte] = append(s[firstByte], first)
}

func (s stages) String() string {
	if len(s) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nstages, as a client that watches the API sees them (median of %d runs; the watching takes its time too)\n", len(s[firstByte]))
	before := time.Duration(0)
	for _, stage := range order {
		at := s[stage].Median()
		if len(s[stage]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%10s  %+9s  %s\n", measure.Ms(at), measure.Ms(at-before), stage)
		before = at
	}
	return b.String()
}
