// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// body is the body of a request.
type body struct {
	begun   bool
	first   []byte // what came with the head
	whole   bool   // that is all
	chunked bool
	total   int64 // when not chunked
	left    int64 // of it
	chunks  chunks

	running bool        // there is a pump to be waited for
	pumped  chan error  // it has ended
	read    atomic.Bool // it has read all of the body
	// What the pump leaves behind: what was wrong with the body, and what it
	// has read beyond its end.
	bad   error
	extra *[]byte
	beyond,
	extraTo int
}

// begin takes what came with the head.
func (b *body) begin(c *conn) *refusal {
	if b.begun {
		return nil
	}
	b.begun, b.bad = true, nil
	b.chunked, b.total = c.req.chunked, max(0, c.req.length)
	b.left = b.total
	b.read.Store(false)
	data := (*c.buf)[c.r:c.w]
	n := int(min(int64(len(data)), b.left))
	if b.chunked {
		var err error
		b.chunks.reset(false)
		if n, b.whole, err = b.chunks.scan(data); err != nil {
			return refuse(400, err.Error())
		}
	} else {
		b.left -= int64(n)
		b.whole = b.left == 0
	}
	b.first = data[:n]
	c.r += n
	return nil
}

// fault refuses a request whose body was not what it should be.
func (b *body) fault() *refusal {
	var timeout net.Error
	switch {
	case b.bad == nil:
		return nil
	case errors.Is(b.bad, errChunk), errors.Is(b.bad, errTrailer):
		return refuse(400, b.bad.Error())
	case errors.As(b.bad, &timeout) && timeout.Timeout():
		return refuse(408, "request body took too long")
	}
	return gone
}

// pump sends the rest of the body while the answer is awaited.
func (x *exchange) pump(up *upstream) {
	x.mu.Lock()
	x.pumping, x.stopping = true, false
	x.unwatch() // who has begun while the request was held; two cannot read
	x.mu.Unlock()
	x.body.running = true
	go func() {
		bad, err := x.carry(up)
		if bad != nil {
			// The app must not take what it has got for the whole.
			x.body.bad, err = bad, bad
			up.InterruptRead()
		}
		x.mu.Lock()
		x.pumping = false
		if x.cause == nil {
			x.s.ResumeRead()
		}
		x.mu.Unlock()
		x.body.pumped <- err
	}()
}

// carry moves the rest of the body. Bad is what is wrong with the body, err
// with the pod; an app may stop reading and still answer.
func (x *exchange) carry(up *upstream) (bad, err error) {
	b := &x.body
	buf := x.g.large.Get()
	defer func() {
		if b.extra != buf {
			x.g.large.Put(buf)
		}
	}()
	for {
		into := *buf
		if !b.chunked {
			into = into[:min(int64(len(into)), b.left)]
		}
		n, err := x.readBody(into)
		if err != nil {
			return err, nil
		}
		took, done := n, false
		if b.chunked {
			if took, done, err = b.chunks.scan(into[:n]); err != nil {
				return err, nil
			}
		} else {
			b.left -= int64(n)
			done = b.left == 0
		}
		if done {
			b.read.Store(true)
		}
		if _, err := up.Write(into[:took]); err != nil {
			return nil, err
		}
		if done {
			if took < n {
				b.extra, b.beyond, b.extraTo = buf, took, n
			}
			return nil, nil
		}
	}
}

// readBody reads from the client, which has its time for each piece.
func (x *exchange) readBody(into []byte) (int, error) {
	x.mu.Lock()
	if x.cause != nil || x.stopping {
		x.mu.Unlock()
		return 0, errTimeout
	}
	err := x.s.Conn().SetReadDeadline(time.Now().Add(x.g.Times.Body))
	x.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return x.s.Read(into)
}

// takeExtra makes what the pump has read beyond the body the beginning of the
// next request. The head of this one is no longer needed.
func (c *conn) takeExtra() {
	if b := &c.body; b.extra != nil {
		c.g.free(c.buf)
		c.buf, c.start, c.r, c.w = b.extra, b.beyond, b.beyond, b.extraTo
		b.extra = nil
	}
}
