// SPDX-License-Identifier: Apache-2.0

// Package autoscaler samples load, asks scale, writes replica counts.
//
// It follows PodAutoscalers, their Deployments and two ConfigMaps, and takes
// load from the data plane over HTTP. Whatever happens to a revision makes one
// call of scale.Decide under one lock, and what follows from it is written by
// a few workers that exist only while there is something to write. A revision
// at rest has no timer and no goroutine.
//
// A request that waits where no pod is leads to the write of the replica count
// in the same call. The status follows a little later: the pod comes first.
//
// Revisions of the class HPA are handed over to Kubernetes' own autoscaler
// (horizontal.go).
//
// Nothing is kept. After a restart the status of each PodAutoscaler says where
// its revision was, and nothing that runs is taken away before its load has
// been observed for a stable window.
package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/load"
)

// Options are what an Autoscaler works with.
type Options struct {
	// Client writes scales and status. It must not limit its own rate: when
	// thirty services wake at once, the last must not wait for a token.
	Client client.Client
	// Informers are those of the process; somebody else starts them.
	Informers cache.Informers
	// Namespace is where the ConfigMaps are; knative-serving by default.
	Namespace string
	Log       *slog.Logger
}

const (
	// Cold starts must not queue behind each other; the API server limits
	// what it does at once by itself.
	scaleWriters = 32
	// Nobody waits for a status, and it costs its readers work too.
	statusWriters = 2

	// statusDelay gathers the changes of a revision that has been ready
	// before. One that wakes within wakingDelay is never shown as waking: the
	// writes, and what others do about them, would only slow its pods down.
	statusDelay = 300 * time.Millisecond
	wakingDelay = 2 * time.Second
)

// Autoscaler scales the revisions.
type Autoscaler struct {
	client    client.Client
	informers cache.Informers
	namespace string
	log       *slog.Logger
	ready     chan struct{}
	wake      chan struct{}

	mu        sync.Mutex
	settings  settings
	revisions map[load.Revision]*revision
	targets   map[types.NamespacedName]*target
	agenda    agenda
	scales    crew
	statuses  crew
	others    *horizontal
	start     func(func(context.Context)) // a worker; nil unless the task runs
	// The data plane has told of all load between these times.
	coveredSince, covered time.Time
}

// New returns an Autoscaler that has yet to be run.
func New(o Options) (*Autoscaler, error) {
	s, err := defaultSettings()
	if err != nil {
		return nil, err
	}
	if o.Namespace == "" {
		o.Namespace = "knative-serving"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	a := &Autoscaler{
		client: o.Client, informers: o.Informers, namespace: o.Namespace, log: o.Log,
		ready: make(chan struct{}), wake: make(chan struct{}, 1),
		settings: s, revisions: map[load.Revision]*revision{}, targets: map[types.NamespacedName]*target{},
	}
	a.scales = crew{limit: scaleWriters, work: a.writeScale, in: func(r *revision) *bool { return &r.inScales }}
	a.statuses = crew{limit: statusWriters, work: a.writeStatus, in: func(r *revision) *bool { return &r.inStatuses }}
	a.others = newHorizontal(a)
	return a, nil
}

// Task runs the Autoscaler.
func (a *Autoscaler) Task() run.Task {
	return run.Task{Name: "autoscaler", Run: a.run, Ready: a.waitReady}
}

func (a *Autoscaler) waitReady(ctx context.Context) error {
	select {
	case <-a.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *Autoscaler) run(ctx context.Context) error {
	defer a.open(ctx)()
	// Settings and targets first: the first decision about a revision that is
	// already there must know how it is.
	for _, watch := range []struct {
		kind    client.Object
		handler toolscache.ResourceEventHandler
	}{
		{&corev1.ConfigMap{}, on(a.sawConfigMap, a.lostConfigMap)},
		{&appsv1.Deployment{}, on(a.sawDeployment, a.lostDeployment)},
		{&autoscalingv1alpha1.PodAutoscaler{}, on(a.sawPodAutoscaler, a.lostPodAutoscaler)},
	} {
		stop, err := a.watch(ctx, watch.kind, watch.handler)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		defer stop()
	}
	close(a.ready)
	a.keepTime(ctx)
	return nil
}

// open lets workers be started, until it is closed.
func (a *Autoscaler) open(ctx context.Context) (closeAndWait func()) {
	var workers sync.WaitGroup
	hire := func(start func(func(context.Context))) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.start = start
	}
	hire(func(work func(context.Context)) { workers.Go(func() { work(ctx) }) })
	return func() {
		hire(nil)
		workers.Wait()
	}
}

// watch tells handler of all objects of a kind, and returns when it has been
// told of those that exist.
func (a *Autoscaler) watch(ctx context.Context, kind client.Object, handler toolscache.ResourceEventHandler) (stop func(), err error) {
	informer, err := a.informers.GetInformer(ctx, kind)
	if err != nil {
		return nil, fmt.Errorf("watching %T: %w", kind, err)
	}
	registration, err := informer.AddEventHandler(handler)
	if err != nil {
		return nil, fmt.Errorf("watching %T: %w", kind, err)
	}
	select {
	case <-registration.HasSyncedChecker().Done():
		return func() {
			if err := informer.RemoveEventHandler(registration); err != nil {
				a.log.Debug("unwatching", "error", err)
			}
		}, nil
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), informer.RemoveEventHandler(registration))
	}
}

// keepTime makes the decisions and the writes that come with time.
func (a *Autoscaler) keepTime(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(a.catchUp(time.Now()))
		select {
		case <-timer.C:
		case <-a.wake:
		case <-ctx.Done():
			return
		}
	}
}

// catchUp does what is due and returns the time until something will be.
func (a *Autoscaler) catchUp(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		r, at := a.agenda.first()
		if r == nil {
			return time.Hour
		}
		if at.After(now) {
			return at.Sub(now)
		}
		if due(r.flush, now) {
			r.flush = time.Time{}
			a.push(&a.statuses, r)
		}
		if due(r.again, now) {
			a.decide(r, now)
		}
		a.plan(r)
	}
}

func due(at, now time.Time) bool { return !at.IsZero() && !at.After(now) }

// plan puts the revision's next time on the agenda.
func (a *Autoscaler) plan(r *revision) {
	if a.agenda.set(r) {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}
