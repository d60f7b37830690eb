// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"math"
	"sync"
	"time"
)

// warden knows all connections, and looks after those that are late.
type warden struct {
	mu    sync.Mutex
	conns map[*conn]struct{}
	wake  chan struct{} // a connection has come
	done  chan struct{}
}

const (
	// tick is how late a deadline may be noticed.
	tick = 250 * time.Millisecond
	// sweepEvery is how often idle connections to pods are looked at.
	sweepEvery = 5 * time.Second
	// crowd is the number of connections from which on idle ones are not kept
	// for long.
	crowd     = 16_384
	crowdIdle = 5 * time.Second

	never = math.MaxInt64
)

func (w *warden) init() {
	w.conns = map[*conn]struct{}{}
	w.wake = make(chan struct{}, 1)
	w.done = make(chan struct{})
}

func (w *warden) stop() { close(w.done) }

func (w *warden) add(c *conn) {
	w.mu.Lock()
	w.conns[c] = struct{}{}
	first := len(w.conns) == 1
	w.mu.Unlock()
	if first {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *warden) remove(c *conn) {
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
}

func (w *warden) each(fn func(*conn)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		fn(c)
	}
}

// guard interrupts connections that are late. While there is none, it sleeps.
func (g *Gateway) guard() {
	w := &g.warden
	timer := time.NewTicker(tick)
	defer timer.Stop()
	for sweep := time.Duration(0); ; {
		select {
		case <-w.done:
			return
		case <-timer.C:
		}
		now := g.now()
		if now >= sweep {
			g.ups.sweep(now)
			sweep = now + sweepEvery
		}
		if g.look(now) > 0 {
			continue
		}
		timer.Stop()
		g.ups.sweep(now + 2*idleFor) // nobody is there to use them
		select {
		case <-w.done:
			return
		case <-w.wake:
			timer.Reset(tick)
		}
	}
}

// look calls on the connections that are late, and counts all.
func (g *Gateway) look(now time.Duration) int {
	w := &g.warden
	w.mu.Lock()
	defer w.mu.Unlock()
	crowded := len(w.conns) > crowd
	for c := range w.conns {
		if int64(now) >= c.due.Load() || crowded {
			c.late(now, crowded)
		}
	}
	return len(w.conns)
}
