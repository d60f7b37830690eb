// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
)

// exchange serves the request whose head has been read. It reports whether the
// connection can take another.
func (c *conn) exchange() bool {
	started := c.g.now()
	w := c.g.watching()
	target, no := c.match()
	if no != nil {
		keep := c.refuse(no)
		if w != nil && no != healthy {
			c.tellRefused(w, no, started)
		}
		return keep
	}
	if c.req.upgrade && c.req.settings && fold(c.req.protocol, "h2c") && !c.req.bodied() {
		c.switchToH2()
		return false
	}
	if target.Revision.Protocol == routing.H2C && !c.req.upgrading() {
		c.handOver()
		return false
	}
	if no := c.body.begin(c); no != nil {
		c.reject(no)
		return false
	}
	c.origin.tagHeader, c.origin.tag, c.origin.trace = target.TagHeader, target.Tag, nil

	x := &c.x
	x.begin(target.Revision, started)
	if w != nil {
		x.observe(w, &target)
	}
	keep := x.run()
	c.ended = c.g.now()
	target.Revision.Counts.Add(c.shard, x.outcome())
	if w != nil {
		x.tell()
	}
	if !keep && x.unread {
		c.linger()
	}
	c.takeExtra()
	return keep && !c.g.draining.Load()
}

// match finds the target of the request.
func (c *conn) match() (routing.Target, *refusal) {
	q := routing.Query{
		Host:     text(normal(c.host[:0], c.req.host)),
		Internal: c.face.internal,
		Tag:      text(c.req.tag),
	}
	target, why := c.g.Tables.Load().Match(q)
	if why == routing.Matched {
		return target, nil
	}
	if near, ok := c.g.near(q, text(c.origin.client)); ok && why == routing.UnknownHost {
		q = near
		target, why = c.g.Tables.Load().Match(q)
	}
	if why == routing.UnknownRevision || c.g.Tables.Load() == nil {
		c.wait(nil)
		target, why = c.g.awaitMatch(q)
	}
	if why == routing.UnknownHost && q.Host == healthHost {
		return target, healthy
	}
	if why == routing.Insecure {
		return target, c.g.redirect(strings.Clone(q.Host), string(c.req.target))
	}
	return target, refuseMatch(why)
}

// near is the query for a host that is but a name, as the pod means it that
// asks: in its own namespace.
func (g *Gateway) near(q routing.Query, client string) (routing.Query, bool) {
	if !q.Internal || g.NamespaceOf == nil || q.Host == "" || strings.IndexByte(q.Host, '.') >= 0 {
		return q, false
	}
	addr, err := netip.ParseAddr(client)
	if err != nil {
		return q, false
	}
	namespace, ok := g.NamespaceOf(addr)
	q.Host += "." + namespace
	return q, ok
}

// healthHost is the host under which Knative's gateway tells its health.
const healthHost = "internalkourier"

var healthy = &refusal{status: 200, rule: "health", body: "ok\n"}

// awaitMatch waits for the first table, or for a revision that a route names
// already: the two come by different ways.
func (g *Gateway) awaitMatch(q routing.Query) (target routing.Target, why routing.Refusal) {
	ctx, cancel := context.WithTimeout(context.Background(), g.Times.Table)
	defer cancel()
	_, _ = g.Tables.Wait(ctx, func(t *routing.Table) bool {
		target, why = t.Match(q)
		return t != nil && why != routing.UnknownRevision
	})
	if g.Tables.Load() == nil {
		why = routing.UnknownRevision // nothing is known, which may well change
	}
	return target, why
}

func refuseMatch(why routing.Refusal) *refusal {
	switch why {
	case routing.Matched:
		return nil
	case routing.UnknownRevision:
		return &refusal{status: 503, rule: why.String(), body: "no healthy upstream\n"}
	}
	return &refusal{status: 404, rule: why.String()}
}

// normal writes a host in lower case, without port and final dot.
func normal(out, host []byte) []byte {
	for i := len(host) - 1; i >= 0 && host[i] != ']'; i-- {
		if host[i] == ':' {
			host = host[:i]
			break
		}
	}
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	if len(host) > cap(out) {
		return nil // longer than any name
	}
	for _, b := range host {
		if b >= 'A' && b <= 'Z' {
			b |= 0x20
		}
		out = append(out, b)
	}
	return out
}

// text is p as a string, for as long as p stays as it is.
func text(p []byte) string { return unsafe.String(unsafe.SliceData(p), len(p)) }

// refuse answers with a refusal. The connection goes on if the request is over
// with its head, or its body is here.
func (c *conn) refuse(no *refusal) bool {
	if c.body.begin(c) != nil || !c.body.whole || c.req.close || c.req.minor == 0 {
		c.reject(no)
		return false
	}
	err := c.say(no, false)
	c.ended = c.g.now()
	return err == nil
}

// exchange is a request on its way.
type exchange struct {
	*conn
	revision *routing.Revision
	started  time.Duration

	lease   breaker.Lease
	leased  bool
	framing framing
	unsent  bool // the app has not taken the whole body of the request
	unread  bool // nor has the client sent it: it may be about to
	status  int  // that the client has got, or would have
	refused *refusal

	witness Witness // of this request; nil for most
	report  Report
}

// begin forgets the request before.
func (x *exchange) begin(r *routing.Revision, started time.Duration) {
	x.revision, x.started, x.status = r, started, 0
	x.unsent, x.unread, x.refused = false, false, nil
	x.framing.how = bodyless
	x.lease, x.leased = breaker.Lease{}, false
	x.mu.Lock()
	defer x.mu.Unlock()
	x.answered, x.cause = false, nil
}

// run forwards the request and its answer.
func (x *exchange) run() bool {
	defer x.release()
	if no := x.reserve(); no != nil {
		return x.failed(no)
	}
	if x.witness != nil {
		x.report.forward(x.lease.Pod())
		x.origin.trace = x.report.Told()
	}
	x.lend()
	x.out = appendRequest(x.out[:0], &x.req, &x.origin)
	up, no := x.ask()
	if no != nil {
		return x.failed(no)
	}
	return x.answer(up)
}

// failed answers with a refusal, unless there is nobody to read it.
func (x *exchange) failed(no *refusal) bool {
	x.finish()
	x.status, x.refused = no.status, no
	if no == gone {
		return false
	}
	if x.answered {
		x.s.Reset()
		return false
	}
	x.s.Resume()
	return x.refuse(no)
}

// gone refuses a request whose client has left. The status is for the log.
var gone = &refusal{status: 499, rule: errClientGone.Error()}

func (x *exchange) release() {
	if x.leased {
		x.leased = false
		x.g.Pods.Release(x.lease)
	}
}

// reserve takes a place in a pod, and waits for one if it has to.
func (x *exchange) reserve() *refusal {
	if x.lease, x.leased = x.g.Pods.Try(x.revision); x.leased {
		return nil
	}
	return x.held(func(ctx context.Context) (breaker.Lease, error) {
		return x.g.Pods.Reserve(ctx, x.revision)
	})
}

// elsewhere exchanges a place in a pod that does not answer.
func (x *exchange) elsewhere() *refusal {
	x.leased = false
	lease := x.lease
	return x.held(func(ctx context.Context) (breaker.Lease, error) {
		return x.g.Pods.Elsewhere(ctx, x.revision, lease)
	})
}

// held waits for a place until the request's time is over or its client has
// left.
func (x *exchange) held(take func(context.Context) (breaker.Lease, error)) *refusal {
	if x.report.Trace != nil {
		defer x.holding()()
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if d := x.wholeTime(); d > 0 {
		stop := time.AfterFunc(d-(x.g.now()-x.started), func() { cancel(errTimeout) })
		defer stop.Stop()
	}
	x.wait(cancel)
	lease, err := take(ctx)
	x.mu.Lock()
	x.unwatch()
	x.cancel = nil
	left := x.cause != nil
	x.mu.Unlock()
	if err != nil {
		return refuseHeld(err)
	}
	x.lease, x.leased = lease, true
	if left {
		return gone
	}
	return nil
}

// wholeTime is how long the request may take until its answer starts. An app
// that has not begun is idle, too, and so is one that is not there yet.
func (x *exchange) wholeTime() time.Duration {
	d := x.revision.Timeout
	for _, s := range [...]time.Duration{x.revision.ResponseStart, x.revision.Idle} {
		if s > 0 && (d == 0 || s < d) {
			d = s
		}
	}
	return d
}

// wait enters the phase in which a context keeps the time. Cancel is called
// when the client leaves.
func (c *conn) wait(cancel func(error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase, c.cancel = waiting, cancel
	c.due.Store(never)
	if cancel != nil {
		c.watch()
	}
}

func refuseHeld(err error) *refusal {
	switch {
	case errors.Is(err, errClientGone):
		return gone
	case errors.Is(err, errTimeout):
		return &refusal{status: 504, rule: "timeout while waiting for a pod", body: "activator request timeout"}
	case errors.Is(err, breaker.ErrFull):
		return &refusal{status: 503, rule: err.Error(), body: err.Error() + "\n"}
	}
	return &refusal{status: 500, rule: err.Error()}
}

const (
	// maxTries is how often a request is sent, at most, to pods that close the
	// connection without an answer.
	maxTries = 3
	// refusedFor is how long a request is held for pods that are said to be
	// ready and refuse connections.
	refusedFor = 10 * time.Second
)

// ask sends the request and reads the head of the answer.
func (x *exchange) ask() (*upstream, *refusal) {
	safe := x.body.whole && x.req.idempotent()
	fresh := false
	for try := 1; ; {
		up, no := x.connect(safe, fresh)
		if no != nil {
			return nil, no
		}
		sent, err := x.send(up)
		if err == nil {
			if err = x.hear(up); err == nil {
				return up, nil
			}
		}
		x.finish()
		heard := up.w > 0
		up.free(x.g.small)
		up.Close()
		if no := x.interrupted(); no != nil {
			return nil, no
		}
		retry := !heard && !x.answered && x.body.whole && (safe || sent == 0 && err != nil)
		switch {
		case !retry || !up.again && try >= maxTries:
			return nil, badGateway(err)
		case up.again:
			// It was closed while it was idle: that says nothing of the pod.
			// Its other idle connections may be no better.
			fresh = true
		default:
			try++
			if no := x.elsewhere(); no != nil {
				return nil, no
			}
		}
	}
}

// connect returns a connection to the pod of the lease, or to another one if
// that cannot be reached. Safe requests need not know that it is alive.
func (x *exchange) connect(safe, fresh bool) (*upstream, *refusal) {
	for {
		pod := x.lease.Pod()
		var up *upstream
		if !fresh {
			up = x.g.ups.get(pod, x.started, !safe)
		}
		if up == nil {
			var err error
			if up, err = x.dial(pod); err != nil {
				if x.g.now()-x.started > refusedFor && errors.Is(err, syscall.ECONNREFUSED) {
					return nil, badGateway(err)
				}
				if no := x.elsewhere(); no != nil {
					if no.status == 504 {
						no = badGateway(err)
					}
					return nil, no
				}
				continue
			}
		}
		x.attach(up)
		return up, nil
	}
}

func (x *exchange) dial(pod *breaker.Pod) (*upstream, error) {
	ctx := context.Background()
	if d := x.wholeTime(); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(time.Millisecond, d-(x.g.now()-x.started)))
		defer cancel()
	}
	return x.g.ups.dial(ctx, pod)
}

// attach makes the connection the one that is interrupted when the request is
// late or its client leaves.
func (x *exchange) attach(up *upstream) {
	r := x.revision
	x.mu.Lock()
	defer x.mu.Unlock()
	x.phase, x.since = exchanging, x.started
	x.up = up
	x.limits = limits{idle: r.Idle}
	due := x.started + watchAfter
	if r.Timeout > 0 {
		x.limits.total = x.started + r.Timeout
		due = min(due, x.limits.total)
	}
	if r.ResponseStart > 0 {
		x.limits.start = x.started + r.ResponseStart
		due = min(due, x.limits.start)
	}
	if r.Idle > 0 {
		x.progress.Store(int64(x.started))
		due = min(due, x.started+r.Idle)
	}
	x.due.Store(int64(due))
}

// finish ends the exchange with the pod: from here on nobody interrupts
// anything. It stops whoever still reads the body of the request, or watches.
// It reports whether nobody has interrupted anything before.
func (x *exchange) finish() bool {
	x.stopPump()
	x.due.Store(never)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.phase, x.up = waiting, nil
	x.unwatch()
	return x.cause == nil
}

// pumpGrace is how long the pump has to write what it has read already, once
// the answer is complete. It is about to be done, as a rule; it takes longer
// only if the app has answered without reading.
const pumpGrace = 100 * time.Millisecond

// stopPump ends the reading of the request's body.
func (x *exchange) stopPump() {
	if !x.body.running {
		return
	}
	x.body.running = false
	if x.body.read.Load() {
		grace := time.NewTimer(pumpGrace)
		defer grace.Stop()
		select {
		case err := <-x.body.pumped:
			x.unsent = err != nil
			return
		case <-grace.C:
		}
	}
	select {
	case err := <-x.body.pumped:
		x.unsent, x.unread = err != nil, !x.body.read.Load()
		return
	default:
	}
	x.mu.Lock()
	x.stopping = true
	if x.up != nil {
		x.up.InterruptWrite()
	}
	if x.pumping {
		x.s.InterruptRead()
	}
	x.mu.Unlock()
	<-x.body.pumped
	x.s.ResumeRead()
	x.unsent, x.unread = true, !x.body.read.Load()
}

// interrupted says why the exchange was ended, if it was.
func (x *exchange) interrupted() *refusal {
	x.mu.Lock()
	cause := x.cause
	x.mu.Unlock()
	switch {
	case cause == nil:
		return x.body.fault()
	case errors.Is(cause, errClientGone):
		return gone
	}
	return &refusal{status: 504, rule: cause.Error(), body: lateText}
}

// send writes the head, and what there is of the body; the rest follows while
// the answer is awaited.
func (x *exchange) send(up *upstream) (int, error) {
	n, err := up.WriteTwo(x.out, x.body.first)
	if err == nil && !x.body.whole {
		x.pump(up)
	}
	return n, err
}

// hear reads the head of the answer, and passes on those that come before it.
func (x *exchange) hear(up *upstream) error {
	for {
		x.resp.reset(true)
		for {
			if up.r < up.w {
				done, no := x.resp.parse(up.rest())
				if no != nil {
					return no
				}
				if done {
					break
				}
			}
			if err := up.fill(x.g.small); err != nil {
				return err
			}
		}
		if x.resp.status >= 200 || x.resp.status == 101 {
			return nil
		}
		if err := x.inform(); err != nil {
			return err
		}
		up.r += x.resp.pos
	}
}

// inform passes on an answer that is not the last.
func (x *exchange) inform() error {
	if x.req.minor == 0 {
		return nil
	}
	x.mark()
	// The request has gone out whole, or is read by now: nothing is sent again
	// after this.
	_, err := x.s.Write(appendResponse(nil, &x.resp, reply{}))
	return err
}

// mark notes that the client has got something of an answer.
func (x *exchange) mark() {
	x.mu.Lock()
	x.answered = true
	x.mu.Unlock()
}

// badGateway is what Knative's proxy answers when the app does not.
func badGateway(err error) *refusal {
	var no *refusal
	if errors.As(err, &no) {
		return no
	}
	text := err.Error()
	return &refusal{status: 502, rule: text, body: text + "\n"}
}
