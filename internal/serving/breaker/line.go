// SPDX-License-Identifier: Apache-2.0

package breaker

import "time"

// Waiter is a request in the line. Whoever has one ends it with Take or, if
// it no longer wants the place, with Abandon.
type Waiter struct {
	breaker    *Breaker
	since      time.Duration
	ready      chan struct{}
	lease      Lease
	prev, next *Waiter
}

// Ready returns a channel that is closed when there is a place.
func (w *Waiter) Ready() <-chan struct{} { return w.ready }

// Take returns the place. It is called when Ready is closed.
func (w *Waiter) Take() Lease { return w.lease }

// Abandon leaves the line, or gives the place back if it has just come.
func (w *Waiter) Abandon(now time.Duration) {
	b := w.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum(now)
	if w.lease.pod == nil {
		b.line.remove(w)
		return
	}
	b.free(w.lease.pod)
	b.serve()
}

// line is a doubly linked list: leaving from the middle is as cheap as being
// served.
type line struct {
	head, tail *Waiter
	length     int
}

func (l *line) push(w *Waiter) {
	w.prev = l.tail
	if l.tail != nil {
		l.tail.next = w
	} else {
		l.head = w
	}
	l.tail = w
	l.length++
}

func (l *line) unshift(w *Waiter) {
	w.next = l.head
	if l.head != nil {
		l.head.prev = w
	} else {
		l.tail = w
	}
	l.head = w
	l.length++
}

func (l *line) shift() *Waiter {
	w := l.head
	l.remove(w)
	return w
}

func (l *line) remove(w *Waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.tail = w.prev
	}
	w.prev, w.next = nil, nil
	l.length--
}
