// SPDX-License-Identifier: Apache-2.0

// Package gateway takes traffic from outside.
//
// A connection is one goroutine, and a request is: look up, decide, limit,
// forward. HTTP/1.1 is parsed here once, strictly (what two peers could read
// in two ways is refused), and its header lines and body are passed on as they
// came, without an allocation. A connection that turns out to be HTTP/2, or
// whose app speaks it, is handed with all its bytes to a server of net/http
// that ends in the same lookups and limits.
//
// Deadlines cost a request nothing: the warden, one goroutine, looks at all
// connections four times a second and interrupts those that are late.
//
// A request is sent again, to the same pod on a new connection or to another
// pod, if it has not been sent at all, or if it is idempotent, its body is in
// hand and not a byte of an answer was seen.
//
// Each request to a revision is counted in the revision's Counts. A Witness is
// told more.
//
// Wiring: Tables is swapped by mesh/watch. Pods is serving/activator's
// Activator. Whoever hears that a pod is gone calls Drop, after telling the activator. Listeners are given to Add,
// before Run or while it runs.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/wire"
)

// Pods gives requests places in pods.
type Pods interface {
	// Try takes a place if there is one now.
	Try(*routing.Revision) (breaker.Lease, bool)
	// Reserve waits for a place until ctx ends. It fails with breaker.ErrFull
	// when too many wait already.
	Reserve(context.Context, *routing.Revision) (breaker.Lease, error)
	// Elsewhere exchanges a place in a pod that could not be reached. When it
	// fails the place is given back.
	Elsewhere(context.Context, *routing.Revision, breaker.Lease) (breaker.Lease, error)
	// Release gives a place back.
	Release(breaker.Lease)
	// Ready is how many pods there are.
	Ready(*routing.Revision) int
}

// Options are what a gateway needs.
type Options struct {
	Tables *routing.Live
	Pods   Pods
	// NamespaceOf says where a client from inside is, for hosts that are but a
	// name. It may be nil.
	NamespaceOf func(netip.Addr) (namespace string, ok bool)
	// SecurePort is where clients find the listener of AddTLS, for those that
	// are sent there; 0 is 443.
	SecurePort uint16
	Log        *slog.Logger
	Times      Times
}

// Times are the limits that do not come from a revision. Zero values are set
// to those of DefaultTimes.
type Times struct {
	Idle   time.Duration // between two requests
	Head   time.Duration // for the head of a request, from its first byte
	Body   time.Duration // without a byte of the body of a request
	Table  time.Duration // for a route that is not known yet, at the start
	Drain  time.Duration // for requests that run when the gateway stops
	Linger time.Duration // for the rest of a request that was refused
}

// DefaultTimes returns the usual limits.
func DefaultTimes() Times {
	return Times{
		Idle:   180 * time.Second,
		Head:   10 * time.Second,
		Body:   60 * time.Second,
		Table:  10 * time.Second,
		Drain:  30 * time.Second,
		Linger: time.Second,
	}
}

func (t Times) orDefault() Times {
	d := DefaultTimes()
	for _, p := range [][2]*time.Duration{{&t.Idle, &d.Idle}, {&t.Head, &d.Head}, {&t.Body, &d.Body}, {&t.Table, &d.Table}, {&t.Drain, &d.Drain}, {&t.Linger, &d.Linger}} {
		if *p[0] <= 0 {
			*p[0] = *p[1]
		}
	}
	return t
}

// Gateway forwards requests to pods.
type Gateway struct {
	Options
	epoch    time.Time
	small    *wire.Pool
	large    *wire.Pool
	ups      upstreams
	slow     transports
	warden   warden
	draining atomic.Bool
	witness  atomic.Pointer[Witness]
	accepted atomic.Uint32

	mu      sync.Mutex
	faces   []*face
	started chan struct{}
	stopped bool
	conns   sync.WaitGroup
}

// New returns a gateway without listeners.
func New(o Options) *Gateway {
	o.Times = o.Times.orDefault()
	g := &Gateway{
		Options: o,
		epoch:   time.Now(),
		small:   wire.NewPool(wire.Small),
		large:   wire.NewPool(wire.Large),
		started: make(chan struct{}),
	}
	g.warden.init()
	g.slow.init()
	return g
}

// face is one listener and what is known of those who come through it.
type face struct {
	listener net.Listener
	internal bool
	tls      *tls.Config // nil for plain HTTP
	proto    string
	handoff  *wire.Handoff
	server   *http.Server
}

// Add opens a listener to traffic: to all hosts if it is internal, otherwise
// to those that are not cluster-local. The gateway closes it in the end.
func (g *Gateway) Add(l net.Listener, internal bool) {
	g.open(&face{listener: l, internal: internal, proto: "http", handoff: wire.NewHandoff(l.Addr())})
}

func (g *Gateway) open(f *face) {
	l := f.listener
	f.server = g.newServer(f)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		l.Close()
		return
	}
	g.faces = append(g.faces, f)
	go func() {
		<-g.started
		if err := f.server.Serve(f.handoff); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			g.Log.Error("serving HTTP/2", "listener", l.Addr().String(), "err", err)
		}
	}()
	go func() {
		<-g.started
		g.accept(f)
	}()
}

// Drop closes the connections to a pod that is no more.
func (g *Gateway) Drop(pod string) {
	g.ups.drop(pod)
	g.slow.drop(pod)
}

// Task serves the listeners until its context ends. Requests that run then may
// finish within the drain time.
func (g *Gateway) Task() run.Task {
	return run.Task{Name: "gateway", Run: g.run}
}

func (g *Gateway) run(ctx context.Context) error {
	close(g.started)
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		g.guard()
	}()
	<-ctx.Done()
	g.stop()
	g.warden.stop()
	<-watch
	return nil
}

func (g *Gateway) stop() {
	g.draining.Store(true)
	g.mu.Lock()
	g.stopped = true
	faces := g.faces
	g.mu.Unlock()
	drain, cancel := context.WithTimeout(context.Background(), g.Times.Drain)
	defer cancel()
	for _, f := range faces {
		f.listener.Close()
	}
	g.warden.each(func(c *conn) { c.rest() })
	over := make(chan struct{})
	go func() {
		g.conns.Wait()
		close(over)
	}()
	var servers sync.WaitGroup
	for _, f := range faces {
		servers.Go(func() {
			if f.server.Shutdown(drain) != nil {
				f.server.Close()
			}
			f.handoff.Close()
		})
	}
	servers.Wait()
	select {
	case <-over:
	case <-drain.Done():
		g.warden.each(func(c *conn) { c.s.Reset() })
		<-over
	}
}

// accept takes connections until the listener is closed.
func (g *Gateway) accept(f *face) {
	pause := time.Duration(0)
	for {
		nc, err := f.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, most likely: it passes when some are closed.
			pause = min(max(5*time.Millisecond, 2*pause), time.Second)
			g.Log.Error("accepting connections", "listener", f.listener.Addr().String(), "err", err, "retry", pause)
			time.Sleep(pause)
			continue
		}
		pause = 0
		if err := g.welcome(f, nc); err != nil {
			nc.Close()
		}
	}
}

func (g *Gateway) welcome(f *face, nc net.Conn) error {
	if f.tls != nil {
		go g.shakeHands(f, nc)
		return nil
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		go f.handoff.Give(nc, nil)
		return nil
	}
	s, err := wire.NewStream(tcp)
	if err != nil {
		return fmt.Errorf("taking over a connection: %w", err)
	}
	c := newConn(g, f, s)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return net.ErrClosed
	}
	g.conns.Add(1)
	go c.serve()
	return nil
}

// now is the time since the gateway was made.
func (g *Gateway) now() time.Duration { return time.Since(g.epoch) }

func (g *Gateway) free(b *[]byte) {
	switch cap(*b) {
	case wire.Small:
		g.small.Put(b)
	case wire.Large:
		g.large.Put(b)
	}
}
