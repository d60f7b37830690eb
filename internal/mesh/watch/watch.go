// SPDX-License-Identifier: Apache-2.0

// Package watch keeps compiled tables current.
//
// An object is compiled when it comes and then dropped: what stays in memory
// is the table, not a cache of objects. Changes that come while a table is
// being made go into the next one together. When the API cannot be reached the
// last table stays, and news are asked for several times a second. Nothing is
// written anywhere.
//
// Wiring: Client is internal/kube's. OnPod is for clusters, where no agent of
// ours tells of pods: it is serving/activator's SetEndpoint. OnGone is told of
// deleted revisions: activator.Forget and the meter's. OnService is told of the
// plain Services that stand behind domains, as if they were pods: it is
// activator's SetEndpoint too. Handler is served on the
// node's socket.
package watch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/mesh/compile"
	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/run"
)

// Options are what a watch needs.
type Options struct {
	Client client.WithWatch
	Live   *routing.Live
	// SystemNamespace holds the ConfigMaps.
	SystemNamespace string
	ClusterDomain   string
	OnPod           func(routing.Endpoint)
	OnService       func(routing.Endpoint)
	OnGone          func(revision routing.Name)
	// OnConfigMap is told of the ConfigMaps as they come. It may be nil.
	OnConfigMap func(name string, data map[string]string)
	Log         *slog.Logger
}

// Watch compiles what the API holds into tables.
type Watch struct {
	Options
	feeds []*feed

	mu       sync.Mutex
	settings compile.Settings
	pending  []change
	waiting  map[*feed]bool // feeds that have not listed yet
	wake     chan struct{}
}

// change is applied to the next table.
type change func(*routing.Edit)

// New returns a watch. It does nothing before its task runs.
func New(o Options) *Watch {
	w := &Watch{Options: o, settings: compile.DefaultSettings(), wake: make(chan struct{}, 1)}
	if o.ClusterDomain != "" {
		w.settings.ClusterDomain = o.ClusterDomain
	}
	if w.SystemNamespace == "" {
		w.SystemNamespace = "knative-serving"
	}
	w.feeds = []*feed{
		newFeed("config maps", &corev1.ConfigMap{}, &corev1.ConfigMapList{}, w.configMaps()).in(w.SystemNamespace),
		newFeed("revisions", &servingv1.Revision{}, &servingv1.RevisionList{}, w.revisions()).onSettings(),
		newFeed("routes", &servingv1.Route{}, &servingv1.RouteList{}, w.routes()).onSettings(),
		newFeed("domain mappings", &servingv1beta1.DomainMapping{}, &servingv1beta1.DomainMappingList{}, w.domains()).onSettings(),
		newFeed("certificates", &corev1.Secret{}, &corev1.SecretList{}, w.certificates()).
			with(fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS))),
	}
	if o.OnPod != nil {
		selected, err := labels.Parse(revisionLabel)
		if err != nil {
			panic(err) // a constant
		}
		w.feeds = append(w.feeds, newFeed("pods", &corev1.Pod{}, &corev1.PodList{}, w.pods()).labelled(selected))
	}
	w.waiting = map[*feed]bool{}
	for _, f := range w.feeds {
		w.waiting[f] = true
	}
	w.push(func(e *routing.Edit) { e.SetOptions(w.settings.Options()) })
	if w.OnConfigMap == nil {
		w.OnConfigMap = func(string, map[string]string) {}
	}
	return w
}

// Task watches until its context ends.
func (w *Watch) Task() run.Task {
	return run.Task{Name: "routing tables", Run: func(ctx context.Context) error {
		var feeds sync.WaitGroup
		for _, f := range w.feeds {
			feeds.Go(func() { f.run(ctx, w) })
		}
		w.apply(ctx)
		feeds.Wait()
		return nil
	}}
}

// Synced waits for the first table.
func (w *Watch) Synced(ctx context.Context) error {
	if _, err := w.Live.Wait(ctx, func(t *routing.Table) bool { return t != nil }); err != nil {
		return fmt.Errorf("waiting for the first routing table: %w", err)
	}
	return nil
}

// push adds a change to those for the next table.
func (w *Watch) push(c change) {
	w.mu.Lock()
	w.pending = append(w.pending, c)
	w.mu.Unlock()
	w.signal()
}

// listed notes that a feed knows all its objects. The first table is made once
// all do: a part of the routes would turn away requests to the others.
func (w *Watch) listed(f *feed) {
	w.mu.Lock()
	delete(w.waiting, f)
	w.mu.Unlock()
	w.signal()
}

func (w *Watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// apply makes tables of changes, as many at a time as there are.
func (w *Watch) apply(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		w.mu.Lock()
		ready := len(w.waiting) == 0
		var changes []change
		if ready {
			changes, w.pending = w.pending, nil
		}
		w.mu.Unlock()
		if !ready || len(changes) == 0 && w.Live.Load() != nil {
			continue
		}
		started, e := time.Now(), w.Live.Load().Edit()
		for _, c := range changes {
			c(e)
		}
		gone, t := e.Gone(), e.Table()
		w.Live.Swap(t)
		if w.OnGone != nil {
			for _, n := range gone {
				w.OnGone(n)
			}
		}
		hosts, routes, revisions := t.Size()
		w.Log.Debug("routing table", "changes", len(changes), "hosts", hosts, "routes", routes, "revisions", revisions, "took", time.Since(started))
	}
}

// set replaces the settings. Whoever depends on them is listed again: settings
// change a few times in a platform's life, and keeping all objects for that
// would cost memory all of it.
func (w *Watch) set(change func(compile.Settings) compile.Settings) {
	w.mu.Lock()
	old := w.settings
	w.settings = change(old)
	now := w.settings
	var stale []*feed
	if now != old {
		stale = w.stale()
	}
	w.mu.Unlock()
	if now == old {
		return
	}
	w.push(func(e *routing.Edit) { e.SetOptions(now.Options()) })
	for _, f := range stale {
		f.relist()
	}
}

// stale returns the feeds whose objects were compiled with other settings. The
// first table waits for them. The caller holds the lock.
func (w *Watch) stale() (feeds []*feed) {
	for _, f := range w.feeds {
		if !f.dependent {
			continue
		}
		feeds = append(feeds, f)
		if w.Live.Load() == nil {
			w.waiting[f] = true
		}
	}
	return feeds
}

func (w *Watch) current() compile.Settings {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.settings
}
