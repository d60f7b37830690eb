// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Counts are what is counted of a revision's requests. They are reached through
// the table, so that counting needs no lookup of its own, and outlive it. A
// client's connection counts in one shard: processors do not fight over a line
// of memory.
type Counts struct {
	shards [countShards]countShard
}

const countShards = 8

type countShard struct {
	tallies atomic.Pointer[[]*tally]
	mu      sync.Mutex
	_       [48]byte // the rest of a cache line
}

// tally counts the requests with one method that ended with one status.
type tally struct {
	method    Method
	status    int
	nanos     atomic.Int64
	durations [len(DurationBounds) + 1]atomic.Uint64
	in, out   sizes
}

type sizes struct {
	bytes   atomic.Int64
	buckets [len(SizeBounds) + 1]atomic.Uint64
}

// DurationBounds are the upper bounds of the buckets of durations: all that
// Knative's two generations of latency metrics ask for, merged.
var DurationBounds = [...]time.Duration{
	5 * ms, 10 * ms, 20 * ms, 25 * ms, 40 * ms, 50 * ms, 60 * ms, 75 * ms, 80 * ms, 100 * ms, 150 * ms, 200 * ms, 250 * ms, 300 * ms, 350 * ms, 400 * ms, 450 * ms, 500 * ms,
	600 * ms, 700 * ms, 750 * ms, 800 * ms, 900 * ms, 1000 * ms, 2000 * ms, 2500 * ms, 5000 * ms, 7500 * ms, 10000 * ms, 20000 * ms, 50000 * ms, 100000 * ms,
}

const ms = time.Millisecond

// SizeBounds are those of the sizes of bodies, as OpenTelemetry has them.
var SizeBounds = [...]int64{0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000}

// Method is a request's method, as far as methods are told apart.
type Method uint8

// methods by their number; the first stands for all others.
var methods = [...]string{"_OTHER", "GET", "POST", "PUT", "HEAD", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY"}

// MethodOf returns the method of this name.
func MethodOf[T string | []byte](name T) Method {
	for i := 1; i < len(methods); i++ {
		if string(name) == methods[i] {
			return Method(i)
		}
	}
	return 0
}

// String returns the method's name.
func (m Method) String() string { return methods[m] }

// Outcome is what is counted of a request.
type Outcome struct {
	Method  Method
	Status  int
	Took    time.Duration
	In, Out int64 // bytes of the bodies
}

// Add counts a request that has ended.
func (c *Counts) Add(shard uint32, o Outcome) {
	if c == nil {
		return
	}
	t := c.shards[shard%countShards].tally(o.Method, o.Status)
	// Nearly all requests are in the first buckets: a search from the left.
	i := 0
	for i < len(DurationBounds) && o.Took > DurationBounds[i] {
		i++
	}
	t.durations[i].Add(1)
	t.nanos.Add(int64(o.Took))
	t.in.add(o.In)
	t.out.add(o.Out)
}

func (s *sizes) add(n int64) {
	i := 0
	for i < len(SizeBounds) && n > SizeBounds[i] {
		i++
	}
	s.buckets[i].Add(1)
	if n > 0 {
		s.bytes.Add(n)
	}
}

func (s *countShard) tally(method Method, status int) *tally {
	if list := s.tallies.Load(); list != nil {
		for _, t := range *list {
			if t.status == status && t.method == method {
				return t
			}
		}
	}
	return s.open(method, status)
}

// open adds a tally. What an app may answer is bounded, and so are they.
func (s *countShard) open(method Method, status int) *tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*tally
	if old := s.tallies.Load(); old != nil {
		for _, t := range *old {
			if t.status == status && t.method == method {
				return t
			}
		}
		list = slices.Clone(*old)
	}
	t := &tally{method: method, status: status}
	list = append(list, t)
	s.tallies.Store(&list)
	return t
}

// Sum is what was counted of requests with one method and one status.
type Sum struct {
	Method    Method
	Status    int
	Took      time.Duration // of all together
	Durations [len(DurationBounds) + 1]uint64
	In, Out   SizeSum
}

// SizeSum is what was counted of their bodies.
type SizeSum struct {
	Bytes   int64
	Buckets [len(SizeBounds) + 1]uint64
}

// Count is how many requests these were.
func (s *Sum) Count() (n uint64) {
	for _, b := range s.Durations {
		n += b
	}
	return n
}

// Sums returns what was counted so far, in the order of status and method.
func (c *Counts) Sums() []Sum {
	if c == nil {
		return nil
	}
	var all []Sum
	for i := range c.shards {
		list := c.shards[i].tallies.Load()
		if list == nil {
			continue
		}
		for _, t := range *list {
			at, found := slices.BinarySearchFunc(all, t, func(s Sum, t *tally) int {
				return cmp.Or(cmp.Compare(s.Status, t.status), cmp.Compare(s.Method, t.method))
			})
			if !found {
				all = slices.Insert(all, at, Sum{Method: t.method, Status: t.status})
			}
			all[at].take(t)
		}
	}
	return all
}

func (s *Sum) take(t *tally) {
	s.Took += time.Duration(t.nanos.Load())
	for i := range t.durations {
		s.Durations[i] += t.durations[i].Load()
	}
	s.In.take(&t.in)
	s.Out.take(&t.out)
}

func (s *SizeSum) take(t *sizes) {
	s.Bytes += t.bytes.Load()
	for i := range t.buckets {
		s.Buckets[i] += t.buckets[i].Load()
	}
}
