// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// feed follows the objects of one kind and keeps none.
type feed struct {
	name      string
	kind      client.Object
	list      client.ObjectList
	sink      sink
	namespace string
	selector  labels.Selector
	fields    fields.Selector
	dependent bool // on settings
	again     chan struct{}
}

// sink takes what a feed brings.
type sink struct {
	set     func(client.Object)
	remove  func(client.Object)
	replace func([]client.Object) // all there are
}

func newFeed(name string, kind client.Object, list client.ObjectList, s sink) *feed {
	return &feed{name: name, kind: kind, list: list, sink: s, again: make(chan struct{}, 1)}
}

func (f *feed) in(namespace string) *feed {
	f.namespace = namespace
	return f
}

func (f *feed) labelled(s labels.Selector) *feed {
	f.selector = s
	return f
}

func (f *feed) with(s fields.Selector) *feed {
	f.fields = s
	return f
}

func (f *feed) onSettings() *feed {
	f.dependent = true
	return f
}

// relist makes the feed bring all objects once more.
func (f *feed) relist() {
	select {
	case f.again <- struct{}{}:
	default:
	}
}

// retry is how soon the API is asked again. It is on this machine, and while it
// is away a refused connection is all that each try costs.
func retry() *wait.Backoff {
	return &wait.Backoff{Duration: 20 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 20, Cap: time.Second}
}

// run follows the objects until ctx ends.
func (f *feed) run(ctx context.Context, w *Watch) {
	quiet := logr.FromSlogHandler(w.Log.Handler()).V(1)
	for ctx.Err() == nil {
		one, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			r := cache.NewReflectorWithOptions(f.source(w), f.kind, &store{f, w}, cache.ReflectorOptions{
				Name: f.name, Logger: &quiet, Backoff: retry(),
			})
			r.RunWithContext(one)
		}()
		select {
		case <-ctx.Done():
		case <-f.again:
		}
		cancel()
		<-done
	}
}

func (f *feed) source(w *Watch) cache.ListerWatcher {
	options := func(o metav1.ListOptions) *client.ListOptions {
		return &client.ListOptions{Namespace: f.namespace, LabelSelector: f.selector, FieldSelector: f.fields, Limit: o.Limit, Continue: o.Continue, Raw: &o}
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := f.list.DeepCopyObject().(client.ObjectList)
			return list, w.Client.List(ctx, list, options(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			return w.Client.Watch(ctx, f.list.DeepCopyObject().(client.ObjectList), options(o))
		},
	}, w.Client)
}

// store is what a reflector fills.
type store struct {
	f *feed
	w *Watch
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.each(obj, s.f.sink.set) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.each(obj, s.f.sink.set) }

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error { return s.each(obj, s.f.sink.remove) }

func (s *store) each(obj any, do func(client.Object)) error {
	o, ok := obj.(client.Object)
	if !ok {
		return fmt.Errorf("watch of %s brought %T", s.f.name, obj)
	}
	do(o)
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store) Replace(list []any, _ string) error {
	objects := make([]client.Object, 0, len(list))
	for _, obj := range list {
		if err := s.each(obj, func(o client.Object) { objects = append(objects, o) }); err != nil {
			return err
		}
	}
	s.f.sink.replace(objects)
	s.w.listed(s.f)
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *store) Resync() error { return nil }
