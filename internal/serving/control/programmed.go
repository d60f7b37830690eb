// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// programmed knows which routes, or other objects of one kind, the gateway serves as their
// status says, and has the others reconciled once it does.
type programmed struct {
	kind string // empty for routes
	ask  func(context.Context, Programming) error
	ring func(client.ObjectKey)

	mu     sync.Mutex
	routes map[client.ObjectKey]*programming
}

type programming struct {
	version string // of the Route that is, or is to be, served
	done    bool
	cancel  context.CancelFunc
}

func newProgrammed(kind string, ask func(context.Context, Programming) error, ring func(client.ObjectKey)) *programmed {
	if ask == nil {
		ask = func(context.Context, Programming) error { return nil }
	}
	return &programmed{kind: kind, ask: ask, ring: ring, routes: map[client.ObjectKey]*programming{}}
}

// serves reports whether the gateway serves this state of a route. If it does not, the route
// is reconciled again when it does.
func (p *programmed) serves(r client.Object) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := key(r)
	if one := p.routes[k]; one != nil {
		if one.version == r.GetResourceVersion() {
			return one.done
		}
		one.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	one := &programming{version: r.GetResourceVersion(), cancel: cancel}
	p.routes[k] = one
	go p.wait(ctx, k, one, Programming{Kind: p.kind, Namespace: k.Namespace, Name: k.Name, Generation: r.GetGeneration(), ResourceVersion: r.GetResourceVersion()})
	return false
}

func (p *programmed) wait(ctx context.Context, k client.ObjectKey, one *programming, what Programming) {
	defer one.cancel()
	err := p.ask(ctx, what)
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	one.done = err == nil
	if err != nil && p.routes[k] == one {
		delete(p.routes, k) // the next reconciliation asks again
	}
	p.mu.Unlock()
	p.ring(k)
}

// forget drops a route.
func (p *programmed) forget(k client.ObjectKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if one := p.routes[k]; one != nil {
		one.cancel()
		delete(p.routes, k)
	}
}
