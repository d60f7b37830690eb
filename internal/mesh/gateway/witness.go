// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	hexadecimal "encoding/hex"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
)

// Witness is told of requests, for those who log or trace them. While there is
// none, a request pays one load of a pointer. It must not block.
type Witness interface {
	// Begin is told of a request that will go to a pod, and may set what the
	// app is told of its trace. It returns nil unless the request is to be
	// followed.
	Begin(*Report) Trace
	// End is told of a request when it is over, also of one that was refused
	// before Begin.
	End(*Report)
}

// Trace follows one request.
type Trace interface {
	// Held says that the request has waited for a place, and whether pods were
	// there when it came.
	Held(from, to time.Time, ready bool)
	// Forward says that the request goes to a pod now. It returns the span that
	// the app's are to be part of.
	Forward(to netip.AddrPort) (trace [16]byte, span [8]byte)
}

// Watch makes w the witness of the requests that come from now on. It may be
// nil.
func (g *Gateway) Watch(w Witness) {
	if w == nil {
		g.witness.Store(nil)
		return
	}
	g.witness.Store(&w)
}

func (g *Gateway) watching() Witness {
	if w := g.witness.Load(); w != nil {
		return *w
	}
	return nil
}

// Report is what a witness is told of a request. It is valid during the call
// only, as are all bytes it leads to.
type Report struct {
	Revision *routing.Revision // nil for a request that was refused before there was one
	Tag      string
	Trace    Trace

	Client []byte // address
	Scheme string
	Began  time.Time

	// What is known in the end.
	Pod     *breaker.Pod // that was to answer last; nil if there was none
	Status  int
	Rule    string // that we have refused by
	Took    time.Duration
	In, Out int64 // bytes of the bodies, without their framing

	head *head // either
	req  *http.Request

	told [55]byte // traceparent for the app,
	tell bool     // if it is not the client's own
}

// Tell sets what the app is told of its trace, in place of what the client has
// said. Begin may call it.
func (r *Report) Tell(trace [16]byte, span [8]byte, sampled bool) {
	out := append(r.told[:0], "00-"...)
	out = hexadecimal.AppendEncode(out, trace[:])
	out = append(out, '-')
	out = hexadecimal.AppendEncode(out, span[:])
	if sampled {
		out = append(out, "-01"...)
	} else {
		out = append(out, "-00"...)
	}
	r.tell = len(out) == len(r.told)
}

// Told returns what was set.
func (r *Report) Told() []byte {
	if !r.tell {
		return nil
	}
	return r.told[:]
}

// forward tells the app of the span that its own are part of.
func (r *Report) forward(to *breaker.Pod) {
	if r.Trace != nil {
		trace, span := r.Trace.Forward(to.Addr)
		r.Tell(trace, span, true)
	}
}

// Method returns the request's method. It is empty if it could not be read.
func (r *Report) Method() []byte {
	if r.head != nil {
		return r.head.method
	}
	return []byte(r.req.Method)
}

// Target returns what the client has asked for: a path and a query, as a rule.
func (r *Report) Target() []byte {
	if r.head != nil {
		return r.head.target
	}
	return []byte(r.req.RequestURI)
}

// Host returns the host that was asked for.
func (r *Report) Host() []byte {
	if r.head != nil {
		return r.head.host
	}
	return []byte(r.req.Host)
}

// Version returns the protocol and its version.
func (r *Report) Version() string {
	switch {
	case r.req != nil:
		return r.req.Proto
	case r.head.minor == 0 && len(r.head.method) > 0:
		return "HTTP/1.0"
	}
	return "HTTP/1.1"
}

// Field returns the first value of the header field with this lower-case name.
func (r *Report) Field(lower string) []byte {
	if r.req != nil {
		return []byte(r.req.Header.Get(lower))
	}
	if r.head.buf == nil {
		return nil
	}
	for i := range r.head.count {
		if f := &r.head.fields[i]; fold(r.head.name(f), lower) {
			return r.head.value(f)
		}
	}
	return nil
}

// HTTP returns the request as net/http would have read it, without its body.
// It is the caller's to keep.
func (r *Report) HTTP() *http.Request {
	if r.req != nil {
		out := r.req.Clone(context.Background())
		out.Body, out.RemoteAddr = nil, string(r.Client)
		r.setTrace(out.Header)
		return out
	}
	out := &http.Request{
		Method: string(r.Method()), RequestURI: string(r.Target()), Host: string(r.Host()), Proto: r.Version(),
		ProtoMajor: 1, ProtoMinor: r.head.minor, Header: http.Header{}, RemoteAddr: string(r.Client), ContentLength: r.head.length,
	}
	switch {
	case r.head.chunked:
		out.ContentLength, out.TransferEncoding = -1, []string{"chunked"}
	case out.ContentLength < 0:
		out.ContentLength = 0
	}
	var err error
	if out.URL, err = url.ParseRequestURI(out.RequestURI); err != nil {
		out.URL = &url.URL{Path: out.RequestURI}
	}
	for i := range r.head.count {
		if f := &r.head.fields[i]; f.kind != hostField && r.head.buf != nil {
			out.Header.Add(string(r.head.name(f)), string(r.head.value(f)))
		}
	}
	r.setTrace(out.Header)
	return out
}

func (r *Report) setTrace(h http.Header) {
	if r.tell {
		h.Set("Traceparent", string(r.told[:]))
	}
}

// observe begins the report of a request on its way to a revision.
func (x *exchange) observe(w Witness, target *routing.Target) {
	x.witness = w
	x.report = Report{
		Revision: target.Revision, Tag: target.Tag, Client: x.origin.client, Scheme: x.origin.proto,
		Began: x.g.epoch.Add(x.started), head: &x.req,
	}
	x.report.Trace = w.Begin(&x.report)
}

// tell ends it.
func (x *exchange) tell() {
	r := &x.report
	r.Pod, r.Status, r.Took, r.In, r.Out = x.lease.Pod(), x.status, x.ended-x.started, x.body.taken(), x.passed()
	if x.refused != nil {
		r.Rule = x.refused.rule
	}
	x.witness.End(r)
	x.witness, x.report = nil, Report{}
}

// tellRefused reports a request that has not got as far.
func (c *conn) tellRefused(w Witness, no *refusal, began time.Duration) {
	w.End(&Report{
		Client: c.origin.client, Scheme: c.origin.proto, Began: c.g.epoch.Add(began), Took: c.g.now() - began,
		Status: no.status, Rule: no.rule, Out: int64(len(no.body)), head: &c.req,
	})
}

// holding notes since when a request is held, and whether pods are there.
func (x *exchange) holding() (end func()) {
	from, ready := x.g.now(), x.g.Pods.Ready(x.revision) > 0
	return func() {
		x.report.Trace.Held(x.g.epoch.Add(from), x.g.epoch.Add(x.g.now()), ready)
	}
}

// outcome is what is counted of the request.
func (x *exchange) outcome() routing.Outcome {
	return routing.Outcome{Method: routing.MethodOf(x.req.method), Status: x.status, Took: x.ended - x.started, In: x.body.taken(), Out: x.passed()}
}

// passed is how many bytes of an answer's body were passed on.
func (x *exchange) passed() int64 {
	f := &x.framing
	switch {
	case x.refused != nil:
		return int64(len(x.refused.body))
	case f.how == byLength:
		return x.resp.length - f.left
	case f.how == byChunks:
		return f.chunks.data
	case f.how == byClose:
		return f.sent
	}
	return 0
}

// taken is how many bytes of the request's body were read.
func (b *body) taken() int64 {
	switch {
	case !b.begun:
		return 0
	case b.chunked:
		return b.chunks.data
	}
	return b.total - b.left
}
