// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"sync"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// programmed knows which routes the gateway serves as their status says, and has the others
// reconciled once it does.
type programmed struct {
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

func newProgrammed(ask func(context.Context, Programming) error, ring func(client.ObjectKey)) *programmed {
	if ask == nil {
		ask = func(context.Context, Programming) error { return nil }
	}
	return &programmed{ask: ask, ring: ring, routes: map[client.ObjectKey]*programming{}}
}

// serves reports whether the gateway serves this state of a route. If it does not, the route
// is reconciled again when it does.
func (p *programmed) serves(r *servingv1.Route) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := key(r)
	if one := p.routes[k]; one != nil {
		if one.version == r.ResourceVersion {
			return one.done
		}
		one.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	one := &programming{version: r.ResourceVersion, cancel: cancel}
	p.routes[k] = one
	go p.wait(ctx, k, one, Programming{Namespace: r.Namespace, Name: r.Name, Generation: r.Generation, ResourceVersion: r.ResourceVersion})
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
