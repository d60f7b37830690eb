// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/activator"
	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/serving/load"
)

// world is a gateway with real sockets, and apps behind it.
type world struct {
	t        testing.TB
	tables   *routing.Live
	pods     *activator.Activator
	gateway  *Gateway
	addr     string // external listener
	internal string

	stop  func()
	ended chan struct{}

	mu    sync.Mutex
	pokes []load.Poke
}

func newWorld(t testing.TB, change ...func(*Options)) *world {
	w := &world{t: t, tables: &routing.Live{}}
	w.pods = activator.New(func(p load.Poke) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pokes = append(w.pokes, p)
	})
	o := Options{
		Tables: w.tables, Pods: w.pods, Log: slog.New(slog.DiscardHandler),
	}
	o.Times.Drain = 5 * time.Second
	for _, c := range change {
		c(&o)
	}
	w.gateway = New(o)
	external, internal := listen(t), listen(t)
	w.addr, w.internal = external.Addr().String(), internal.Addr().String()
	w.gateway.Add(external, false)
	w.gateway.Add(internal, true)
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.ended = cancel, make(chan struct{})
	go func() {
		defer close(w.ended)
		if err := w.gateway.Task().Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-w.ended
	})
	w.edit(func(*routing.Edit) {})
	return w
}

func listen(t testing.TB) *net.TCPListener {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (w *world) edit(do func(*routing.Edit)) {
	e := w.tables.Load().Edit()
	do(e)
	w.tables.Swap(e.Table())
}

func rev(name string) routing.Name { return routing.Name{Namespace: "default", Name: name} }

// route gives a revision of the same name a host: NAME.example.
func (w *world) route(r routing.Revision) {
	w.edit(func(e *routing.Edit) {
		split := routing.NewSplit([]routing.Share{{Revision: r.Name, Percent: 100}})
		e.SetRevision(&r)
		e.SetRoute(&routing.Route{Name: r.Name, Hosts: []routing.Host{
			{Host: r.Name.Name + ".example", Split: split},
			{Host: r.Name.Name + ".default.svc.cluster.local", Visibility: routing.ClusterLocal, Split: split},
		}})
	})
}

// serve routes NAME.example to an app that is ready at once.
func (w *world) serve(name string, app http.Handler, change ...func(*routing.Revision)) *pod {
	return w.serveOn(name, w.app(app), change...)
}

func (w *world) serveOn(name string, l net.Listener, change ...func(*routing.Revision)) *pod {
	r := routing.Revision{Name: rev(name), Port: port(l), Timeout: 10 * time.Second}
	for _, c := range change {
		c(&r)
	}
	w.route(r)
	p := &pod{w: w, l: l, endpoint: routing.Endpoint{Revision: r.Name, UID: fmt.Sprintf("%s-%d", name, port(l)), IP: addr(l), Ready: true}}
	p.up()
	return p
}

// app serves a handler on a loopback address of its own.
func (w *world) app(app http.Handler) net.Listener {
	l := listen(w.t)
	w.run(l, app)
	return l
}

func (w *world) run(l net.Listener, app http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: app, Protocols: &protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = server.Serve(l) }() // ends with the test
	w.t.Cleanup(func() { server.Close() })
	return server
}

func port(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

func addr(l net.Listener) netip.Addr { return l.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap() }

// pod is an app as an endpoint.
type pod struct {
	w        *world
	l        net.Listener
	endpoint routing.Endpoint
}

func (p *pod) up() { p.w.pods.SetEndpoint(p.endpoint) }

func (p *pod) gone() {
	e := p.endpoint
	e.Ready, e.Gone = false, true
	p.w.pods.SetEndpoint(e)
	p.w.gateway.Drop(e.UID)
}

// client returns an HTTP client that finds every host at the gateway.
func (w *world) client() *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", w.addr)
		},
		MaxIdleConnsPerHost: 100,
		DisableCompression:  true,
	}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

// inFlight is how many requests a revision has.
func (w *world) inFlight(name string) (n int) {
	w.pods.States(func(r *routing.Revision, s breaker.State) {
		if r.Name == rev(name) {
			n = s.InFlight
		}
	})
	return n
}

// held is how many of them wait.
func (w *world) held(name string) (n int) {
	w.pods.States(func(r *routing.Revision, s breaker.State) {
		if r.Name == rev(name) {
			n = s.Held
		}
	})
	return n
}

// h2client is a client that speaks HTTP/2 from the first byte.
func (w *world) h2client() *http.Client {
	c := w.client()
	t := c.Transport.(*http.Transport)
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	return c
}

// sums is what was counted of a revision's requests.
func (w *world) sums(name string) []routing.Sum {
	r, _ := w.tables.Load().Revision(rev(name))
	return r.Counts.Sums()
}
