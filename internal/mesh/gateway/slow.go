// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/wire"
)

const (
	// maxStreams bounds the requests at a time on one HTTP/2 connection.
	maxStreams = 250
	// pingAfter is how long an HTTP/2 peer may be silent before it is asked
	// whether it is still there, and pingTimeout how long it may think.
	pingAfter, pingTimeout = 30 * time.Second, 15 * time.Second
)

// newServer returns the server for connections that the fast path has handed
// over: net/http knows HTTP/2, and guards against its floods.
func (g *Gateway) newServer(f *face) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serveSlow(f, w, r) }),
		Protocols:         &protocols,
		ReadHeaderTimeout: g.Times.Head,
		IdleTimeout:       g.Times.Idle,
		MaxHeaderBytes:    maxHead,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      pingAfter, PingTimeout: pingTimeout,
		},
		ErrorLog: slog.NewLogLogger(g.logHandler(), slog.LevelDebug),
	}
}

func (g *Gateway) logHandler() slog.Handler {
	if g.Log == nil {
		return slog.DiscardHandler
	}
	return g.Log.Handler()
}

// transports are the ways to apps for what net/http serves. Pods are named by
// their IDs in them, since an address may belong to one pod after another.
type transports struct {
	http1, http2 *http.Transport
	addrs        sync.Map // pod ID → netip.AddrPort
}

func (t *transports) init() {
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
		id, _, _ := strings.Cut(addr, ":")
		a, ok := t.addrs.Load(id)
		if !ok {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("pod is gone")}
		}
		return wire.Dial(ctx, a.(netip.AddrPort))
	}
	transport := func(protocols *http.Protocols) *http.Transport {
		return &http.Transport{
			DialContext: dial, Protocols: protocols,
			DisableCompression:  true,
			MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: idleFor,
			MaxResponseHeaderBytes: maxHead,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		}
	}
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	t.http1, t.http2 = transport(&one), transport(&two)
}

func (t *transports) drop(pod string) { t.addrs.Delete(pod) }

// serveSlow serves a request that net/http has read.
func (g *Gateway) serveSlow(f *face, w http.ResponseWriter, r *http.Request) {
	started, watching := g.now(), g.watching()
	target, no := g.matchSlow(f, r)
	if no != nil {
		refuseSlow(w, no)
		if watching != nil {
			watching.End(&Report{
				Client: clientOf(r), Scheme: f.proto, Began: g.epoch.Add(started), Took: g.now() - started,
				Status: no.status, Rule: no.rule, Out: int64(len(no.body)), req: r,
			})
		}
		return
	}
	if r.ProtoMajor == 1 {
		// As on the fast path, an app may answer before it has read.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	s := &slow{g: g, face: f, target: target, revision: target.Revision, started: started, witness: watching}
	if watching != nil {
		s.report = Report{
			Revision: s.revision, Tag: target.Tag, Client: clientOf(r), Scheme: f.proto, Began: g.epoch.Add(started), req: r,
		}
		s.report.Trace = watching.Begin(&s.report)
	}
	defer s.account(r) // also when net/http gives up by a panic
	s.serve(w, r)
}

// account counts the request, and tells of it.
func (s *slow) account(r *http.Request) {
	took, in, out := s.g.now()-s.started, s.in.Load(), s.out.Load()
	switch {
	case s.refused != nil:
		out = int64(len(s.refused.body))
	case s.status == 0:
		s.status = gone.status // there was nobody to be told
	}
	s.revision.Counts.Add(rand.Uint32(), routing.Outcome{Method: routing.MethodOf(r.Method), Status: s.status, Took: took, In: in, Out: out})
	if s.witness == nil {
		return
	}
	s.report.Pod, s.report.Status, s.report.Took, s.report.In, s.report.Out = s.lease.Pod(), s.status, took, in, out
	if s.refused != nil {
		s.report.Rule = s.refused.rule
	}
	s.witness.End(&s.report)
}

func clientOf(r *http.Request) []byte {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return []byte(host)
}

func (g *Gateway) matchSlow(f *face, r *http.Request) (routing.Target, *refusal) {
	q := routing.Query{
		Host:     string(normal(make([]byte, 0, 256), []byte(r.Host))),
		Internal: f.internal,
		Secure:   f.tls != nil,
		Tag:      r.Header.Get("Knative-Serving-Tag"),
	}
	table := g.Tables.Load()
	target, why := table.Match(q)
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if near, ok := g.near(q, host); ok && why == routing.UnknownHost {
		q = near
		target, why = table.Match(q)
	}
	if why == routing.UnknownRevision || table == nil {
		target, why = g.awaitMatch(q)
	}
	if why == routing.Insecure {
		return target, g.redirect(q.Host, r.URL.RequestURI())
	}
	return target, refuseMatch(why)
}

func refuseSlow(w http.ResponseWriter, no *refusal) {
	h := w.Header()
	if no.body != "" {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	if no.location != "" {
		h.Set("Location", no.location)
	}
	w.WriteHeader(no.status)
	_, _ = io.WriteString(w, no.body) // the client is gone, and nobody is left to be told
}

// slow is a request on the way through net/http.
type slow struct {
	g        *Gateway
	face     *face
	target   routing.Target
	revision *routing.Revision
	started  time.Duration
	lease    breaker.Lease
	status   int
	refused  *refusal
	in, out  atomic.Int64 // bytes of the bodies

	witness Witness // nil if nobody wants to know
	report  Report

	proxy  *httputil.ReverseProxy
	cancel context.CancelCauseFunc
	start  *time.Timer // until the answer begins
	idle   *time.Timer // until the app writes again
}

func (s *slow) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	s.cancel = cancel
	defer s.limit(func() { cancel(errTimeout) })()
	lease, ok := s.g.Pods.Try(s.revision)
	if !ok {
		var err error
		if lease, err = s.reserve(ctx); err != nil {
			s.refuse(w, refuseHeld(s.why(err)))
			return
		}
	}
	s.lease = lease
	s.report.forward(lease.Pod())
	defer func() {
		if s.lease.Pod() != nil {
			s.g.Pods.Release(s.lease)
		}
	}()
	s.proxy = &httputil.ReverseProxy{
		Rewrite: s.rewrite, Transport: s, FlushInterval: -1,
		ModifyResponse: s.heard, ErrorHandler: s.failed, BufferPool: buffers{s.g.large},
		ErrorLog: slog.NewLogLogger(s.g.logHandler(), slog.LevelDebug),
	}
	s.proxy.ServeHTTP(w, r.WithContext(ctx))
}

func (s *slow) reserve(ctx context.Context) (breaker.Lease, error) {
	if s.report.Trace != nil {
		from, ready := s.g.now(), s.g.Pods.Ready(s.revision) > 0
		defer func() { s.report.Trace.Held(s.g.epoch.Add(from), s.g.epoch.Add(s.g.now()), ready) }()
	}
	return s.g.Pods.Reserve(ctx, s.revision)
}

// limit has late be called when the request's time is over.
func (s *slow) limit(late func()) (stop func()) {
	var timers []*time.Timer
	after := func(d time.Duration) *time.Timer {
		if d <= 0 {
			return nil
		}
		timers = append(timers, time.AfterFunc(d, late))
		return timers[len(timers)-1]
	}
	after(s.revision.Timeout)
	s.start, s.idle = after(s.revision.ResponseStart), after(s.revision.Idle)
	return func() {
		for _, t := range timers {
			t.Stop()
		}
	}
}

// why makes a context's end what it was meant to say.
func (s *slow) why(err error) error {
	if errors.Is(err, context.Canceled) {
		return errClientGone
	}
	return err
}

func (s *slow) refuse(w http.ResponseWriter, no *refusal) {
	s.status, s.refused = no.status, no
	refuseSlow(w, no)
}

// rewrite gives the request the header fields that the fast path would.
func (s *slow) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme = "http"
	p.Out.Host = p.In.Host
	p.Out.Trailer = p.In.Trailer // it is filled when the body has been read
	host, _, _ := net.SplitHostPort(p.In.RemoteAddr)
	for _, name := range hopsOnly {
		p.Out.Header.Del(name)
	}
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
		if v, ok := p.In.Header[name]; ok {
			p.Out.Header[name] = v
		}
	}
	forwardedHeaders(p.Out.Header, &origin{
		client: []byte(host), proto: s.face.proto,
		tagHeader: s.target.TagHeader, tag: s.target.Tag, trace: s.report.Told(),
	})
}

// hopsOnly is what Knative's hops say to each other.
var hopsOnly = []string{"K-Proxy-Request", "K-Network-Probe", "K-Network-Hash", "K-Original-Host", "K-Passthrough-Lb", "Knative-Serving-Revision", "Knative-Serving-Namespace"}

// forwardedHeaders lets the fast path's own words be said about a request that
// net/http has read.
func forwardedHeaders(h http.Header, o *origin) {
	var f forwardedFields
	for _, v := range h["X-Forwarded-For"] {
		if f.count < len(f.fors) {
			f.fors[f.count] = []byte(v)
			f.count++
		}
	}
	f.proto, f.host, f.id = []byte(h.Get("X-Forwarded-Proto")), []byte(h.Get("X-Forwarded-Host")), []byte(h.Get("X-Request-Id"))
	f.hasForward = h.Get("Forwarded") != ""
	if o.tagHeader {
		h.Del("Knative-Serving-Tag")
		h.Del("Knative-Serving-Default-Route")
	}
	for line := range strings.Lines(string(f.append(nil, o))) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ": ")
		h.Set(name, value)
	}
}

// RoundTrip sends the request to a pod: to another one if that cannot be
// reached.
func (s *slow) RoundTrip(r *http.Request) (*http.Response, error) {
	body := &unclosed{body: r.Body, count: &s.in}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = body
	}
	transport := s.g.slow.http1
	if s.revision.Protocol == routing.H2C && r.Header.Get("Upgrade") == "" {
		transport = s.g.slow.http2
	}
	for {
		pod := s.lease.Pod()
		s.g.slow.addrs.Store(pod.ID, pod.Addr)
		r.URL.Host = pod.ID + ":80"
		resp, err := transport.RoundTrip(r)
		var op *net.OpError
		switch {
		case err == nil:
			return resp, nil
		case !errors.As(err, &op) || op.Op != "dial" || body.read.Load() || r.Context().Err() != nil,
			s.g.now()-s.started > refusedFor:
			return nil, err
		}
		if s.lease, err = s.g.Pods.Elsewhere(r.Context(), s.revision, s.lease); err != nil {
			return nil, &heldError{s.why(err)}
		}
	}
}

// heldError says that there was no place in another pod.
type heldError struct{ error }

func (s *slow) heard(resp *http.Response) error {
	s.status = resp.StatusCode
	if resp.ContentLength == 0 {
		// There is nothing to flush but the head, which then must not go out
		// by itself: gRPC has its failures be the head and the end in one.
		s.proxy.FlushInterval = 0
	}
	if len(resp.Trailer) > 0 {
		// HTTP/1.1 has a place for trailers only behind chunks.
		resp.Header.Del("Content-Length")
	}
	if s.start != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		s.start.Stop()
	}
	if resp.Body == nil || resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	resp.Body = &counted{resp.Body, &s.out}
	if s.idle != nil {
		s.idle.Reset(s.revision.Idle)
		resp.Body = &busy{resp.Body, s.idle, s.revision.Idle}
	}
	// The words would be no message of gRPC: there the stream is broken off.
	if resp.ContentLength < 0 && !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc") {
		resp.Body = &timed{ReadCloser: resp.Body, ctx: resp.Request.Context()}
	}
	return nil
}

// timed ends a body whose time is over with the words that would have been all
// of it, had it not begun.
type timed struct {
	io.ReadCloser
	ctx  context.Context
	last io.Reader
}

func (t *timed) Read(p []byte) (int, error) {
	if t.last != nil {
		return t.last.Read(p)
	}
	n, err := t.ReadCloser.Read(p)
	if err != nil && err != io.EOF && errors.Is(context.Cause(t.ctx), errTimeout) {
		t.last, err = strings.NewReader(lateText), nil
	}
	return n, err
}

func (s *slow) failed(w http.ResponseWriter, r *http.Request, err error) {
	var held *heldError
	switch cause := context.Cause(r.Context()); {
	case errors.Is(cause, errTimeout):
		s.refuse(w, &refusal{status: 504, rule: cause.Error(), body: lateText})
	case cause != nil:
		s.refuse(w, gone)
	case errors.As(err, &held):
		s.refuse(w, refuseHeld(held.error))
	default:
		s.refuse(w, badGateway(err))
	}
}

// unclosed is a body that is still there after a try that has not read it.
type unclosed struct {
	body  io.ReadCloser
	read  atomic.Bool
	count *atomic.Int64
}

func (u *unclosed) Read(p []byte) (int, error) {
	u.read.Store(true)
	n, err := u.body.Read(p)
	u.count.Add(int64(n))
	return n, err
}

// Close leaves it to the server to close the body.
func (u *unclosed) Close() error { return nil }

// counted counts what is read.
type counted struct {
	io.ReadCloser
	count *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.count.Add(int64(n))
	return n, err
}

// busy puts off the idle timer whenever the app writes.
type busy struct {
	io.ReadCloser
	timer *time.Timer
	limit time.Duration
}

func (b *busy) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.timer.Reset(b.limit)
	return n, err
}

// buffers lends net/http our buffers.
type buffers struct{ pool *wire.Pool }

func (b buffers) Get() []byte  { return *b.pool.Get() }
func (b buffers) Put(p []byte) { b.pool.Put(&p) }
