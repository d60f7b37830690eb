// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"container/heap"
	"time"
)

// agenda holds the revisions for which time will change something, the next
// one first.
type agenda struct{ items []*revision }

// first returns the next revision and its time, nil if there is none.
func (g *agenda) first() (*revision, time.Time) {
	if len(g.items) == 0 {
		return nil, time.Time{}
	}
	return g.items[0], g.items[0].next
}

// set enters, moves or strikes out a revision according to its times, and
// reports whether the next time has come nearer.
func (g *agenda) set(r *revision) (sooner bool) {
	r.next = soonest(r.again, r.flush)
	switch {
	case r.next.IsZero():
		g.drop(r)
		return false
	case r.place == 0:
		heap.Push(g, r)
	default:
		heap.Fix(g, r.place-1)
	}
	return g.items[0] == r
}

// drop strikes a revision out.
func (g *agenda) drop(r *revision) {
	if r.place != 0 {
		heap.Remove(g, r.place-1)
	}
}

func soonest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Len, Less, Swap, Push and Pop make it a heap.
func (g *agenda) Len() int           { return len(g.items) }
func (g *agenda) Less(i, j int) bool { return g.items[i].next.Before(g.items[j].next) }

func (g *agenda) Swap(i, j int) {
	g.items[i], g.items[j] = g.items[j], g.items[i]
	g.items[i].place, g.items[j].place = i+1, j+1
}

func (g *agenda) Push(x any) {
	r := x.(*revision)
	g.items = append(g.items, r)
	r.place = len(g.items)
}

func (g *agenda) Pop() any {
	last := len(g.items) - 1
	r := g.items[last]
	g.items[last] = nil
	g.items = g.items[:last]
	r.place = 0
	return r
}
