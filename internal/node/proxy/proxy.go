// SPDX-License-Identifier: Apache-2.0

// Package proxy keeps service rules current.
//
// It watches Services and EndpointSlices and tells the network what to
// forward. The first change is passed on at once; what happens while the
// kernel is being written is passed on together afterwards. An error of the
// kernel is the network's to repair: it has been told what to forward.
package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/run"
)

// A Programmer makes the kernel forward services.
type Programmer interface {
	Program(ctx context.Context, services []network.Service) error
	Update(ctx context.Context, changed []network.Service, gone []string) error
}

// Options of a Proxy; all but Log are required.
type Options struct {
	Informers informers.SharedInformerFactory // may be shared with others
	Network   Programmer
	NodeName  string
	Log       *slog.Logger
}

// A Proxy passes Services on to the network.
type Proxy struct {
	options  Options
	services cache.SharedIndexInformer
	slices   cache.SharedIndexInformer
	ready    chan struct{}
	wake     chan struct{}

	mu    sync.Mutex
	dirty map[string]bool // services, as namespace/name

	known map[string][]string // what was programmed for each; Run's own
}

// byService finds the slices of a service.
const byService = "proxy-service"

// retryFirst is how long to wait before programming all services again.
const retryFirst = time.Second

// New prepares a proxy; its informers start with its task.
func New(o Options) (*Proxy, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{
		options:  o,
		services: o.Informers.Core().V1().Services().Informer(),
		slices:   o.Informers.Discovery().V1().EndpointSlices().Informer(),
		ready:    make(chan struct{}), wake: make(chan struct{}, 1),
		dirty: map[string]bool{}, known: map[string][]string{},
	}
	for _, informer := range []cache.SharedIndexInformer{p.services, p.slices} {
		// Fails when another has set one already, which does the same.
		_ = informer.SetTransform(slim)
	}
	err := p.slices.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) { return owner(obj), nil }})
	if err != nil {
		return nil, fmt.Errorf("indexing endpoint slices: %w", err)
	}
	return p, nil
}

// Task is the proxy's work. It is ready when all services are forwarded.
func (p *Proxy) Task() run.Task {
	return run.Task{Name: "service proxy", Run: p.run, Ready: func(ctx context.Context) error {
		select {
		case <-p.ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

// slim drops what nobody here reads and what is most of many objects.
func slim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// owner is the service that a slice belongs to.
func owner(obj any) []string {
	part, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || part.Labels[discoveryv1.LabelServiceName] == "" {
		return nil
	}
	return []string{part.Namespace + "/" + part.Labels[discoveryv1.LabelServiceName]}
}

func (p *Proxy) run(ctx context.Context) error {
	stop, err := p.listen()
	defer stop()
	if err != nil {
		return err
	}
	p.options.Informers.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), p.services.HasSynced, p.slices.HasSynced) {
		return nil // ctx has ended
	}
	if !p.programAll(ctx) {
		return nil
	}
	close(p.ready)
	for {
		select {
		case <-p.wake:
			p.update(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// listen notes which services change.
func (p *Proxy) listen() (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	for informer, keys := range map[cache.SharedIndexInformer]func(any) []string{p.services: own, p.slices: owner} {
		note := func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			p.note(keys(obj))
		}
		reg, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: note, DeleteFunc: note,
			UpdateFunc: func(before, after any) { note(before); note(after) },
		})
		if err != nil {
			return stop, fmt.Errorf("watching services: %w", err)
		}
		stops = append(stops, func() { _ = informer.RemoveEventHandler(reg) })
	}
	return stop, nil
}

func own(obj any) []string {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil
	}
	return []string{svc.Namespace + "/" + svc.Name}
}

func (p *Proxy) note(keys []string) {
	p.mu.Lock()
	for _, key := range keys {
		p.dirty[key] = true
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Proxy) take() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	dirty := p.dirty
	p.dirty = map[string]bool{}
	return dirty
}

// programAll tells the network all services, until it has succeeded.
func (p *Proxy) programAll(ctx context.Context) bool {
	for {
		p.take() // all are read now
		var all []network.Service
		clear(p.known)
		for _, key := range p.services.GetStore().ListKeys() {
			now := p.read(key)
			p.known[key] = names(now)
			all = append(all, now...)
		}
		err := p.options.Network.Program(ctx, all)
		if err == nil {
			return true
		}
		p.options.Log.Error("forwarding services", "err", err, "again_in", retryFirst)
		select {
		case <-time.After(retryFirst):
		case <-ctx.Done():
			return false
		}
	}
}

// update tells the network what changed.
func (p *Proxy) update(ctx context.Context) {
	var changed []network.Service
	var gone []string
	for _, key := range slices.Sorted(maps.Keys(p.take())) {
		now := p.read(key)
		left := names(now)
		for _, name := range p.known[key] {
			if !slices.Contains(left, name) {
				gone = append(gone, name)
			}
		}
		if p.known[key] = left; len(left) == 0 {
			delete(p.known, key)
		}
		changed = append(changed, now...)
	}
	if len(changed)+len(gone) == 0 {
		return
	}
	if err := p.options.Network.Update(ctx, changed, gone); err != nil && ctx.Err() == nil {
		p.options.Log.Error("forwarding services", "err", err)
	}
}

// read is what the caches say about a service now.
func (p *Proxy) read(key string) []network.Service {
	obj, ok, err := p.services.GetStore().GetByKey(key)
	if err != nil || !ok {
		return nil
	}
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil
	}
	found, err := p.slices.GetIndexer().ByIndex(byService, key)
	if err != nil {
		p.options.Log.Error("finding the endpoints of a service", "service", key, "err", err)
		return nil
	}
	parts := make([]*discoveryv1.EndpointSlice, 0, len(found))
	for _, obj := range found {
		if part, ok := obj.(*discoveryv1.EndpointSlice); ok {
			parts = append(parts, part)
		}
	}
	return ports(svc, parts, p.options.NodeName)
}

func names(services []network.Service) []string {
	var all []string
	for _, s := range services {
		all = append(all, s.Name)
	}
	return all
}
