// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// A feed passes on what the API tells of one kind, as it comes and in order:
// no queue lies between, and no second copy is kept. It implements
// cache.ReflectorStore, whose caller is one goroutine.
type feed struct {
	put    func(runtime.Object)
	gone   func(runtime.Object)
	synced func() // once, after the first list
	known  map[types.UID]runtime.Object
	done   bool
}

// apiBackoff is how long to wait before asking an API again that did not
// answer. It runs on this machine: when it is back, it is wanted at once.
func apiBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 50 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 100, Cap: time.Second}
}

// run follows a kind until ctx ends.
func (f *feed) run(ctx context.Context, lw cache.ListerWatcher, kind runtime.Object) {
	f.known = map[types.UID]runtime.Object{}
	cache.NewReflectorWithOptions(lw, kind, f, cache.ReflectorOptions{Name: "node agent", Backoff: apiBackoff()}).RunWithContext(ctx)
}

// Add implements cache.ReflectorStore.
func (f *feed) Add(o any) error { return f.Update(o) }

// Update implements cache.ReflectorStore.
func (f *feed) Update(o any) error {
	obj, uid, err := identify(o)
	if err != nil {
		return err
	}
	f.known[uid] = obj
	f.put(obj)
	return nil
}

// Delete implements cache.ReflectorStore.
func (f *feed) Delete(o any) error {
	obj, uid, err := identify(o)
	if err != nil {
		return err
	}
	delete(f.known, uid)
	f.gone(obj)
	return nil
}

// Replace implements cache.ReflectorStore: what is known and not in the list
// went while nobody looked.
func (f *feed) Replace(list []any, _ string) error {
	before := f.known
	f.known = make(map[types.UID]runtime.Object, len(list))
	for _, o := range list {
		obj, uid, err := identify(o)
		if err != nil {
			return err
		}
		delete(before, uid)
		f.known[uid] = obj
	}
	for _, obj := range before {
		f.gone(obj)
	}
	for _, obj := range f.known {
		f.put(obj)
	}
	if !f.done {
		f.done = true
		f.synced()
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

func identify(o any) (runtime.Object, types.UID, error) {
	obj, ok := o.(runtime.Object)
	if !ok {
		return nil, "", fmt.Errorf("not an object: %T", o)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, "", err
	}
	if m.GetUID() == "" { // only in tests
		return obj, types.UID(m.GetNamespace() + "/" + m.GetName()), nil
	}
	return obj, m.GetUID(), nil
}

// listWatch lists and watches one kind, with a field selector.
func listWatch[T runtime.Object](client kubernetes.Interface, list func(context.Context, metav1.ListOptions) (T, error),
	watcher func(context.Context, metav1.ListOptions) (watch.Interface, error), selector string) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return watcher(ctx, o)
		},
	}, client)
}
