// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fresh reads from caches, but never what is older than what was written through it. A cache
// is a few milliseconds behind; in these a reconciler would create again what it has created,
// and have its status refused for a conflict with itself. Lists are not helped.
type fresh struct {
	client.Client
	memory *memory
}

// freshReader reads from another cache in the same way.
type freshReader struct {
	client.Reader
	memory *memory
}

// memory holds what was written until a cache has it.
type memory struct {
	mu    sync.Mutex
	wrote map[memoryKey]written
}

type memoryKey struct {
	kind reflect.Type
	key  client.ObjectKey
}

type written struct {
	obj     client.Object
	version uint64
	at      time.Time
}

// catchUp is how long a cache may be behind. What it does not have by then is gone.
const catchUp = 2 * time.Second

func newMemory() *memory { return &memory{wrote: map[memoryKey]written{}} }

func memoryKeyOf(obj client.Object, k client.ObjectKey) memoryKey {
	return memoryKey{reflect.TypeOf(obj), k}
}

func versionOf(obj client.Object) uint64 {
	n, _ := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	return n
}

// newer replaces what a cache returned by what was written since, if there is such a thing.
func (m *memory) newer(k client.ObjectKey, obj client.Object, err error) error {
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	id := memoryKeyOf(obj, k)
	w, ok := m.wrote[id]
	if !ok {
		return err
	}
	if time.Since(w.at) > catchUp || err == nil && versionOf(obj) >= w.version {
		delete(m.wrote, id)
		return err
	}
	reflect.ValueOf(obj).Elem().Set(reflect.ValueOf(w.obj.DeepCopyObject()).Elem())
	return nil
}

// note remembers what was written, if it was.
func (m *memory) note(obj client.Object, err error) error {
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if len(m.wrote) >= 512 {
		for id, w := range m.wrote {
			if now.Sub(w.at) > catchUp {
				delete(m.wrote, id)
			}
		}
	}
	copied, ok := obj.DeepCopyObject().(client.Object)
	if !ok {
		return fmt.Errorf("copy of %T is none", obj)
	}
	m.wrote[memoryKeyOf(obj, client.ObjectKeyFromObject(obj))] = written{copied, versionOf(obj), now}
	return nil
}

// follow has the memory drop what a cache has caught up with. Else an object that is deleted
// moments after it was made would be taken for there, and nothing would tell otherwise later.
func (m *memory) follow(c cache.Cache, kinds ...client.Object) error {
	for _, kind := range kinds {
		informer, err := c.GetInformer(context.Background(), kind)
		if err != nil {
			return fmt.Errorf("follow %T: %w", kind, err)
		}
		seen := func(obj any) {
			if o, ok := obj.(client.Object); ok {
				m.caughtUp(o)
			}
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: seen, UpdateFunc: func(_, obj any) { seen(obj) }, DeleteFunc: seen,
		}); err != nil {
			return fmt.Errorf("follow %T: %w", kind, err)
		}
	}
	return nil
}

func (m *memory) caughtUp(obj client.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := memoryKeyOf(obj, client.ObjectKeyFromObject(obj))
	if w, ok := m.wrote[id]; ok && versionOf(obj) >= w.version {
		delete(m.wrote, id)
	}
}

func (m *memory) forget(obj client.Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.wrote, memoryKeyOf(obj, client.ObjectKeyFromObject(obj)))
}

func (f fresh) Get(ctx context.Context, k client.ObjectKey, obj client.Object, o ...client.GetOption) error {
	return f.memory.newer(k, obj, f.Client.Get(ctx, k, obj, o...))
}

func (f freshReader) Get(ctx context.Context, k client.ObjectKey, obj client.Object, o ...client.GetOption) error {
	return f.memory.newer(k, obj, f.Reader.Get(ctx, k, obj, o...))
}

func (f fresh) Create(ctx context.Context, obj client.Object, o ...client.CreateOption) error {
	return f.memory.note(obj, f.Client.Create(ctx, obj, o...))
}

func (f fresh) Update(ctx context.Context, obj client.Object, o ...client.UpdateOption) error {
	return f.memory.note(obj, f.Client.Update(ctx, obj, o...))
}

func (f fresh) Patch(ctx context.Context, obj client.Object, p client.Patch, o ...client.PatchOption) error {
	return f.memory.note(obj, f.Client.Patch(ctx, obj, p, o...))
}

func (f fresh) Delete(ctx context.Context, obj client.Object, o ...client.DeleteOption) error {
	f.memory.forget(obj)
	return f.Client.Delete(ctx, obj, o...)
}

// updateStatus writes an object's status.
func (f fresh) updateStatus(ctx context.Context, obj client.Object) error {
	return f.memory.note(obj, f.Client.Status().Update(ctx, obj))
}
