// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sonagi/sonagi/internal/wire"
)

var (
	errHeadTooLarge = errors.New("message head too large")
	errTimeout      = errors.New(lateText)
	errClientGone   = errors.New("client has gone away")
)

// lateText is what a client is told whose request has taken too long.
const lateText = "request timeout"

// phase is what a connection is doing, as far as it can be late with it.
type phase uint8

const (
	resting    phase = iota // between requests
	heading                 // reading a head
	waiting                 // for a table or a pod: a context keeps the time
	exchanging              // with a pod
	lingering               // with a refusal, or after it
)

// conn is the connection of a client.
type conn struct {
	g    *Gateway
	face *face
	s    *wire.Stream

	// What was read and not yet used is buf[r:w]; the head of the request
	// being served begins at buf[start].
	buf         *[]byte
	start, r, w int
	lent        *[]byte // what out begins as
	out         []byte
	req, resp   head
	origin      origin
	addr        [46]byte // text of the client's address
	host        [256]byte
	body        body
	x           exchange
	ended       time.Duration // when the last request was over
	shard       uint32        // of counts
	given       bool          // to another server

	due atomic.Int64 // when the warden is to call late

	mu       sync.Mutex // guards what follows, between serve and others
	phase    phase
	since    time.Duration // when the phase began
	limits   limits
	up       *upstream // of the exchange
	cause    error     // why the exchange is to end
	answered bool      // bytes of an answer have been written
	pumping  bool      // somebody reads the body of the request
	stopping bool      // and is to stop
	watching bool      // somebody waits for the client to leave
	watched  chan struct{}
	cancel   func(error) // ends the wait for a pod

	progress atomic.Int64 // when the app has written last, for the idle limit
}

// limits are the deadlines of an exchange, and how long the app may be silent
// once it answers. Zero means none. First holds in a protocol that was switched
// to: as in Knative, the consent to switch is not yet an answer.
type limits struct {
	total, start, first time.Duration
	idle                time.Duration
}

func newConn(g *Gateway, f *face, s *wire.Stream) *conn {
	c := &conn{g: g, face: f, s: s, watched: make(chan struct{}, 1), shard: g.accepted.Add(1)}
	c.due.Store(never)
	c.body.pumped = make(chan error, 1)
	c.x.conn = c
	addr := netip.Addr{}
	if a, ok := s.Conn().RemoteAddr().(*net.TCPAddr); ok {
		addr = a.AddrPort().Addr().Unmap().WithZone("")
	}
	c.origin = origin{client: addr.AppendTo(c.addr[:0]), proto: f.proto}
	return c
}

// serve serves the connection until either side has had enough.
func (c *conn) serve() {
	defer c.g.conns.Done()
	c.g.warden.add(c)
	c.ended = c.g.now()
	for c.await() && c.exchange() {
	}
	c.g.warden.remove(c)
	c.giveBack()
	if !c.given {
		c.s.Close()
	}
}

// await reads the head of the next request.
func (c *conn) await() bool {
	c.req.reset(false)
	c.body.begun = false
	c.start = c.r
	if c.r == c.w {
		if !c.doze() {
			return false
		}
	}
	for first := true; ; first = false {
		data := (*c.buf)[c.start:c.w]
		if bytes.HasPrefix(data, preface) {
			c.handOver()
			return false
		}
		done, no := c.req.parse(data)
		if no != nil {
			c.r = c.w
			c.rejectHead(no)
			return false
		}
		if done {
			c.r = c.start + c.req.pos
			return true
		}
		if first {
			c.enter(heading, c.g.now(), c.g.Times.Head)
		}
		if err := c.more(); err != nil {
			c.failedHead(err)
			return false
		}
	}
}

// preface is the first line of an HTTP/2 connection.
var preface = []byte("PRI * HTTP/2.0\r\n")

// lend makes sure that there is a buffer to write to.
func (c *conn) lend() {
	if c.lent == nil {
		c.lent = c.g.small.Get()
		c.out = (*c.lent)[:0]
	}
}

// giveBack gives the buffers back.
func (c *conn) giveBack() {
	if c.buf != nil {
		c.g.free(c.buf)
		c.buf = nil
	}
	if c.lent != nil {
		c.g.free(c.lent)
		c.lent, c.out = nil, nil
	}
}

// doze waits for the first bytes of a request, without a buffer.
func (c *conn) doze() bool {
	c.giveBack()
	c.enter(resting, c.ended, c.g.Times.Idle)
	if c.g.draining.Load() {
		return false
	}
	buf, n, err := c.s.ReadPooled(c.g.small)
	if err != nil {
		return false
	}
	c.buf, c.start, c.r, c.w = buf, 0, 0, n
	return true
}

// more reads more of a head.
func (c *conn) more() error {
	if c.w == len(*c.buf) {
		data := (*c.buf)[c.start:c.w]
		if c.start > 0 {
			copy(*c.buf, data)
		} else {
			if len(*c.buf) == wire.Large {
				return errHeadTooLarge
			}
			grown := c.g.large.Get()
			copy(*grown, data)
			c.g.free(c.buf)
			c.buf = grown
		}
		c.start, c.r, c.w = 0, 0, len(data)
	}
	n, err := c.s.Read((*c.buf)[c.w:])
	c.w += n
	return err
}

// failedHead answers a client that has begun a request and not ended it.
func (c *conn) failedHead(err error) {
	var timeout net.Error
	switch {
	case errors.Is(err, errHeadTooLarge):
		c.rejectHead(refuseHeadSize)
	case errors.As(err, &timeout) && timeout.Timeout():
		// The warden has interrupted reading and is about to interrupt writing:
		// only when it is through, and will not come again, is that taken back.
		c.enter(lingering, c.g.now(), c.g.Times.Head)
		c.s.Resume()
		c.rejectHead(refuse(408, "request head took too long"))
	}
}

// rejectHead rejects a request whose head could not be read.
func (c *conn) rejectHead(no *refusal) {
	began := c.g.now()
	c.reject(no)
	if w := c.g.watching(); w != nil {
		c.tellRefused(w, no, began)
	}
}

// enter begins a phase that may last for d.
func (c *conn) enter(p phase, now, d time.Duration) {
	c.mu.Lock()
	c.phase, c.since = p, now
	c.mu.Unlock()
	c.due.Store(int64(now + d))
}

// rest ends the connection if it is between requests: the gateway stops.
func (c *conn) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == resting {
		c.s.InterruptRead()
	}
}

// late is called by the warden.
func (c *conn) late(now time.Duration, crowded bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.phase {
	case resting:
		if int64(now) >= c.due.Load() || crowded && now-c.since > crowdIdle {
			c.s.InterruptRead()
		}
	case heading, lingering:
		if int64(now) >= c.due.Load() {
			c.s.InterruptRead()
			c.s.InterruptWrite()
		}
	case exchanging:
		c.lateExchange(now)
	}
}

// watchAfter is how long an exchange runs before somebody looks whether the
// client is still there. Most are over by then, and nobody has to.
const watchAfter = 200 * time.Millisecond

func (c *conn) lateExchange(now time.Duration) {
	l := c.limits
	due := int64(never)
	if l.total > 0 {
		due = int64(l.total)
	}
	if l.start > 0 && !c.answered {
		due = min(due, int64(l.start))
	}
	progress := c.progress.Load()
	if l.first > 0 && progress <= 0 {
		due = min(due, int64(l.first))
	}
	if l.idle > 0 {
		due = min(due, max(progress, int64(c.since))+int64(l.idle))
	}
	if int64(now) >= due {
		c.abort(errTimeout)
		c.due.Store(never)
		return
	}
	if !c.watching && !c.pumping {
		if now-c.since >= watchAfter {
			c.watch()
		} else {
			due = min(due, int64(c.since+watchAfter))
		}
	}
	c.due.Store(due)
}

// abort ends the exchange early. The caller holds the lock.
func (c *conn) abort(cause error) {
	if c.cause == nil {
		c.cause = cause
	}
	if c.up != nil {
		c.up.InterruptRead()
		c.up.InterruptWrite()
	}
	if c.answered {
		c.s.InterruptWrite()
	}
	if c.pumping {
		c.s.InterruptRead()
	}
	if c.cancel != nil {
		c.cancel(cause)
	}
}

// watch waits for the client to leave. The caller holds the lock.
func (c *conn) watch() {
	c.watching = true
	go func() {
		if c.s.AwaitEnd() == nil {
			c.mu.Lock()
			if c.watching {
				c.abort(errClientGone)
			}
			c.mu.Unlock()
		}
		c.watched <- struct{}{}
	}()
}

// unwatch ends watch. The caller holds the lock.
func (c *conn) unwatch() {
	if !c.watching {
		return
	}
	c.watching = false
	c.mu.Unlock()
	c.s.InterruptRead()
	<-c.watched
	c.s.ResumeRead()
	c.mu.Lock()
}

// handOver gives the connection, with what was read since the beginning of the
// request, to the server for HTTP/2 and other odd cases.
func (c *conn) handOver() { c.giveAway((*c.buf)[c.start:c.w]) }

func (c *conn) giveAway(read []byte) {
	c.due.Store(never)
	c.g.warden.remove(c)
	guard := &guarded{Conn: c.s.Conn()}
	if !guard.frames.scan(read, time.Now) {
		return
	}
	c.given = c.face.handoff.Give(guard, read)
}

// reject answers a request with a refusal and ends the connection. The client
// may be sending still: what comes is read for a while, since closing at once
// would reset the connection and could take the answer with it.
func (c *conn) reject(no *refusal) {
	if c.say(no, true) == nil {
		c.linger()
	}
}

// say writes a refusal.
func (c *conn) say(no *refusal, last bool) error {
	c.enter(lingering, c.g.now(), c.g.Times.Head)
	c.lend()
	c.out = no.append(c.out[:0], time.Now(), last, string(c.req.method) == "HEAD")
	_, err := c.s.Write(c.out)
	return err
}

func (c *conn) linger() {
	c.enter(lingering, c.g.now(), c.g.Times.Linger)
	if c.s.Conn().CloseWrite() != nil {
		return
	}
	buf := c.g.large.Get()
	defer c.g.free(buf)
	for range 64 {
		if _, err := c.s.Read(*buf); err != nil {
			return
		}
	}
}
