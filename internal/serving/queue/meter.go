// SPDX-License-Identifier: Apache-2.0

// Package queue limits and measures the requests of one app container.
//
// The limit itself is the breaker that serving/activator keeps in front of the
// revision's pods: in one process, what Knative's activator and queue-proxy
// each guard is one count. Here is the measuring. A Meter counts finished
// requests by revision and status (Observe: two atomic additions) and writes
// them in Prometheus' text format under Knative's names; a Reporter carries the
// load, sampled each second, and the pokes to the autoscaler over a socket, and
// never makes a request wait.
//
// Wiring: mesh/gateway's Observe is Meter.Observe; Reporter.Sample is
// activator.Sample and the activator's poke is Reporter.Poke; Meter.Handler is
// given activator.States.
package queue

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// Meter counts requests by revision. Its zero value is ready for use.
type Meter struct {
	revisions sync.Map // routing.Name → *series
}

// series are the counts of one revision, one histogram for each status.
type series struct {
	revision routing.Revision
	mu       sync.Mutex
	statuses atomic.Pointer[[]*histogram]
}

// histogram counts the requests that ended with one status.
type histogram struct {
	status  int
	nanos   atomic.Int64
	buckets [len(bounds) + 1]atomic.Uint64
}

// bounds are the upper bounds of the buckets, in milliseconds: all that
// Knative's two generations of latency metrics ask for, merged.
var bounds = [...]float64{5, 10, 20, 25, 40, 50, 60, 75, 80, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 750, 800, 900, 1000, 2000, 2500, 5000, 7500, 10000, 20000, 50000, 100000}

// Observe counts a request that has ended.
func (m *Meter) Observe(revision *routing.Revision, status int, took time.Duration) {
	v, ok := m.revisions.Load(revision.Name)
	if !ok {
		v, _ = m.revisions.LoadOrStore(revision.Name, &series{revision: *revision})
	}
	v.(*series).histogram(status).add(took)
}

// Forget drops the counts of a revision that is no more.
func (m *Meter) Forget(revision routing.Name) { m.revisions.Delete(revision) }

func (s *series) histogram(status int) *histogram {
	if list := s.statuses.Load(); list != nil {
		for _, h := range *list {
			if h.status == status {
				return h
			}
		}
	}
	return s.add(status)
}

func (s *series) add(status int) *histogram {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*histogram
	if old := s.statuses.Load(); old != nil {
		for _, h := range *old {
			if h.status == status {
				return h
			}
		}
		list = slices.Clone(*old)
	}
	h := &histogram{status: status}
	list = append(list, h)
	s.statuses.Store(&list)
	return h
}

func (h *histogram) add(took time.Duration) {
	ms := float64(took) / float64(time.Millisecond)
	// Nearly all requests are in the first buckets: a search from the left.
	i := 0
	for i < len(bounds) && ms > bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.nanos.Add(int64(took))
}
