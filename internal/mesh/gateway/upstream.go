// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/wire"
)

const (
	// maxIdle bounds the idle connections to one pod.
	maxIdle = 512
	// idleFor is how long one is kept. Apps close theirs after five seconds
	// (Node.js) or later; which that is, is looked at before the next use.
	idleFor = 30 * time.Second
	// freshFor is how long after its last use a connection needs no look.
	freshFor = 5 * time.Millisecond
)

// upstream is a connection to a pod.
type upstream struct {
	*wire.Stream
	pool  *pool
	buf   *[]byte // what was read from it and not yet used is buf[r:w]
	r, w  int
	used  time.Duration // when its last request ended
	again bool          // it has carried a request before
}

// pool holds the idle connections to one pod. It is gone when the pod is; its
// address may then belong to another, so connections are never found by
// address.
type pool struct {
	mu      sync.Mutex
	idle    []*upstream
	touched time.Duration
	gone    bool
}

// upstreams holds the pools by the pod's ID.
type upstreams struct {
	pools sync.Map // string → *pool
}

func (u *upstreams) pool(id string) *pool {
	if p, ok := u.pools.Load(id); ok {
		return p.(*pool)
	}
	p, _ := u.pools.LoadOrStore(id, &pool{})
	return p.(*pool)
}

// get returns an idle connection to a pod, or nil. The one used last comes
// first. If look is set, the connection has been seen to be open a moment ago.
func (u *upstreams) get(pod *breaker.Pod, now time.Duration, look bool) *upstream {
	p := u.pool(pod.ID)
	for {
		c := p.take(now)
		if c == nil {
			return nil
		}
		if age := now - c.used; age < idleFor && (!look && age < freshFor || c.Quiet()) {
			return c
		}
		c.Close()
	}
}

func (p *pool) take(now time.Duration) *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.touched = now
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return c
}

// put keeps a connection for the next request.
func (c *upstream) put(now time.Duration) {
	c.used, c.again = now, true
	p := c.pool
	p.mu.Lock()
	keep := !p.gone && len(p.idle) < maxIdle
	if keep {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// dial opens a connection to a pod.
func (u *upstreams) dial(ctx context.Context, pod *breaker.Pod) (*upstream, error) {
	conn, err := wire.Dial(ctx, pod.Addr)
	if err != nil {
		return nil, err
	}
	s, err := wire.NewStream(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &upstream{Stream: s, pool: u.pool(pod.ID)}, nil
}

// drop closes the idle connections to a pod that is no more, and those in use
// as soon as they are idle.
func (u *upstreams) drop(id string) {
	v, ok := u.pools.LoadAndDelete(id)
	if !ok {
		return
	}
	p := v.(*pool)
	p.mu.Lock()
	idle := p.idle
	p.idle, p.gone = nil, true
	p.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}

// sweep closes connections that have been idle for long, or were closed by
// their pod, and forgets pools that nobody has used for as long.
func (u *upstreams) sweep(now time.Duration) {
	u.pools.Range(func(id, v any) bool {
		p := v.(*pool)
		for _, c := range p.sweep(now) {
			c.Close()
		}
		p.mu.Lock()
		p.gone = len(p.idle) == 0 && now-p.touched > 2*idleFor
		gone := p.gone
		p.mu.Unlock()
		if gone {
			u.pools.CompareAndDelete(id, v)
		}
		return true
	})
}

// sweep takes out what is to be closed.
func (p *pool) sweep(now time.Duration) []*upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	var old []*upstream
	kept := p.idle[:0]
	for _, c := range p.idle {
		if now-c.used < idleFor && c.Quiet() {
			kept = append(kept, c)
		} else {
			old = append(old, c)
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	return old
}

// fill reads more from the pod, behind what is there.
func (c *upstream) fill(pool *wire.Pool) error {
	if c.buf == nil {
		buf, n, err := c.ReadPooled(pool)
		if err != nil {
			return err
		}
		c.buf, c.r, c.w = buf, 0, n
		return nil
	}
	if c.r > 0 {
		copy(*c.buf, (*c.buf)[c.r:c.w])
		c.r, c.w = 0, c.w-c.r
	}
	if c.w == len(*c.buf) {
		grown := make([]byte, min(2*len(*c.buf), maxHead+1))
		if len(grown) == c.w {
			return errHeadTooLarge
		}
		copy(grown, *c.buf)
		pool.Put(c.buf)
		c.buf = &grown
	}
	n, err := c.Read((*c.buf)[c.w:])
	c.w += n
	return err
}

// rest is what was read and not yet used.
func (c *upstream) rest() []byte {
	if c.buf == nil {
		return nil
	}
	return (*c.buf)[c.r:c.w]
}

// free gives the buffer back.
func (c *upstream) free(pool *wire.Pool) {
	if c.buf != nil {
		pool.Put(c.buf)
		c.buf, c.r, c.w = nil, 0, 0
	}
}
