// SPDX-License-Identifier: Apache-2.0

// Package breaker admits a bounded number of requests and queues the rest.
//
// A Breaker stands in front of the pods of one revision. A request takes a
// Lease on the pod that has the fewest; when no pod has a place it waits in a
// line that is served in the order of arrival: nobody overtakes, and a place
// that becomes free goes to the head of the line in the same step, so that a
// pod's limit is kept exactly. Requests are counted from their arrival, in the
// line or in a pod, weighed by time: that is the load the autoscaler sees.
//
// It is locks only: no goroutine, no clock. Time is what callers say it is,
// counted from any moment of their choice.
package breaker

import (
	"errors"
	"net/netip"
	"sync"
	"time"
)

// ErrFull says that the line is as long as it may be. Clients see this text.
var ErrFull = errors.New("pending request queue full")

// Hold is how many requests wait, at most, while a revision has no pod.
const Hold = 10_000

// Limits are the settings of a revision.
type Limits struct {
	// Concurrency is how many requests a pod takes at a time; zero: any number.
	Concurrency int
	// Queue is how many requests may wait per pod while there are pods.
	// Zero: Hold for all together, as while there are none.
	Queue int
}

// Pod is a pod that takes requests.
type Pod struct {
	ID   string
	Addr netip.AddrPort

	active  int
	streams int // of the active
	leaves  bool
	suspect bool
	// Closed when it leaves and is idle, or has but streams; made on demand.
	idle, calm chan struct{}
}

// Breaker admits the requests of one revision.
type Breaker struct {
	mu      sync.Mutex
	limits  Limits
	pods    []*Pod
	leaving map[string]*Pod // no longer ready, with requests still in them
	turn    int             // where the search for a pod begins
	line    line
	active  int

	// Since the last sample: when that was, the time up to which weight has
	// been summed, the sum of requests × time, and the arrivals.
	sampled, summed time.Duration
	weight          float64
	arrived         int64
}

// New returns a breaker without pods.
func New(limits Limits, now time.Duration) *Breaker {
	return &Breaker{limits: limits, sampled: now, summed: now}
}

// Lease is a place for one request in a pod.
type Lease struct {
	breaker *Breaker
	pod     *Pod
	stream  bool
}

// Stream returns the lease as that of a request that has become a stream, as a
// WebSocket is: it may stay for as long as both sides like.
func (l Lease) Stream() Lease {
	b := l.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	if !l.stream {
		l.stream = true
		l.pod.streams++
		l.pod.drained()
	}
	return l
}

// Pod returns the pod. It is nil in the zero Lease.
func (l Lease) Pod() *Pod { return l.pod }

// Try takes a place if there is one and nobody waits for it.
func (b *Breaker) Try(now time.Duration) (Lease, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.line.length > 0 {
		return Lease{}, false
	}
	pod := b.pick()
	if pod == nil {
		return Lease{}, false
	}
	b.arrive(now)
	pod.active++
	b.active++
	return Lease{breaker: b, pod: pod}, true
}

// Wait joins the line. The Waiter may be ready at once.
func (b *Breaker) Wait(now time.Duration) (*Waiter, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.line.length >= b.bound() && (b.line.length > 0 || b.pick() == nil) {
		return nil, ErrFull
	}
	b.arrive(now)
	w := &Waiter{breaker: b, since: now, ready: make(chan struct{})}
	b.line.push(w)
	b.serve()
	return w, nil
}

// Done gives the place back. The request is over.
func (l Lease) Done(now time.Duration) {
	b := l.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum(now)
	if l.stream {
		l.pod.streams--
	}
	b.free(l.pod)
	b.serve()
}

// Again gives the place back and waits for another, at the head of the line:
// the request has waited once already.
func (l Lease) Again(now time.Duration) *Waiter {
	b := l.breaker
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum(now)
	b.free(l.pod)
	w := &Waiter{breaker: b, since: now, ready: make(chan struct{})}
	b.line.unshift(w)
	b.serve()
	return w
}

// Suspect keeps requests away from a pod that could not be reached, until
// Trust. It reports whether that is news.
func (b *Breaker) Suspect(pod *Pod) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	news := !pod.suspect && !pod.leaves
	pod.suspect = true
	return news
}

// Trust takes back Suspect.
func (b *Breaker) Trust(pod *Pod) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pod.suspect = false
	b.serve()
}

// SetLimits replaces the limits. Requests in pods stay where they are.
func (b *Breaker) SetLimits(limits Limits) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limits != limits {
		b.limits = limits
		b.serve()
	}
}

// Spot says where a pod is.
type Spot struct {
	ID   string
	Addr netip.AddrPort
}

// SetPods says which pods are ready. Others get no new request. The line is
// served at once.
func (b *Breaker) SetPods(spots []Spot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := make(map[string]*Pod, len(b.pods))
	for _, p := range b.pods {
		old[p.ID] = p
	}
	pods := make([]*Pod, 0, len(spots))
	for _, s := range spots {
		pods = append(pods, b.join(s, old))
	}
	for _, p := range old {
		b.leave(p)
	}
	b.pods = pods
	b.serve()
}

// join finds or makes the pod of a spot.
func (b *Breaker) join(s Spot, old map[string]*Pod) *Pod {
	if p, ok := old[s.ID]; ok && p.Addr == s.Addr {
		delete(old, s.ID)
		return p
	}
	if p, ok := b.leaving[s.ID]; ok && p.Addr == s.Addr {
		delete(b.leaving, s.ID)
		p.leaves, p.suspect = false, false
		return p
	}
	return &Pod{ID: s.ID, Addr: s.Addr}
}

func (b *Breaker) leave(p *Pod) {
	p.leaves = true
	if p.active > 0 {
		if b.leaving == nil {
			b.leaving = map[string]*Pod{}
		}
		b.leaving[p.ID] = p
	}
	p.drained()
}

// Drain returns a channel that is closed once no request is in the pod and
// none will come, and one that is closed once there are at most streams: it has
// to be among the pods that SetPods left out. For a pod that is not known both
// are closed already.
func (b *Breaker) Drain(id string) (idle, calm <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.leaving[id]
	for _, ready := range b.pods {
		if ready.ID == id {
			p = ready
		}
	}
	if p == nil {
		p = &Pod{leaves: true}
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	if p.calm == nil {
		p.calm = make(chan struct{})
	}
	idle, calm = p.idle, p.calm
	p.drained()
	return idle, calm
}

// drained tells those who wait for the pod to be empty, or nearly so.
func (p *Pod) drained() {
	if !p.leaves {
		return
	}
	if p.active == p.streams && p.calm != nil {
		close(p.calm)
		p.calm = nil
	}
	if p.active == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// State is what a breaker holds at a moment.
type State struct {
	InFlight int           // requests, in the line or in pods
	Held     int           // those in the line
	Ready    int           // pods
	Waited   time.Duration // for how long the head of the line has waited
}

// Load is what has happened since the last sample.
type Load struct {
	State
	Span        time.Duration
	Concurrency float64 // requests, averaged over the span
	Requests    int64   // arrivals
}

// State returns what is there now.
func (b *Breaker) State(now time.Duration) State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state(now)
}

func (b *Breaker) state(now time.Duration) State {
	s := State{InFlight: b.active + b.line.length, Held: b.line.length, Ready: len(b.pods)}
	if head := b.line.head; head != nil {
		s.Waited = max(0, now-head.since)
	}
	return s
}

// Sample returns the load since the last sample.
func (b *Breaker) Sample(now time.Duration) Load {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum(now)
	l := Load{State: b.state(now), Span: now - b.sampled, Requests: b.arrived}
	if l.Span > 0 {
		l.Concurrency = b.weight / float64(l.Span)
	}
	b.sampled, b.weight, b.arrived = now, 0, 0
	return l
}

func (b *Breaker) arrive(now time.Duration) {
	b.sum(now)
	b.arrived++
}

// sum adds the time since it was last called, times the requests there were.
// Callers read their clocks outside the lock, so time may seem to step back a
// little: such steps are left out.
func (b *Breaker) sum(now time.Duration) {
	if passed := now - b.summed; passed > 0 {
		b.weight += float64(passed) * float64(b.active+b.line.length)
		b.summed = now
	}
}

func (b *Breaker) bound() int {
	if b.limits.Queue > 0 && len(b.pods) > 0 {
		return min(Hold, b.limits.Queue*len(b.pods))
	}
	return Hold
}

func (b *Breaker) free(p *Pod) {
	p.active--
	b.active--
	if p.leaves && p.active == 0 && b.leaving[p.ID] == p {
		delete(b.leaving, p.ID)
	}
	p.drained()
}

// serve hands places to the line for as long as there are both.
func (b *Breaker) serve() {
	for b.line.head != nil {
		pod := b.pick()
		if pod == nil {
			return
		}
		w := b.line.shift()
		pod.active++
		b.active++
		w.lease = Lease{breaker: b, pod: pod}
		close(w.ready)
	}
}

// pick returns the pod with the fewest requests that has a place, or nil. The
// search begins behind the pod chosen last, so that equals take turns.
func (b *Breaker) pick() *Pod {
	var best *Pod
	n := len(b.pods)
	for i := range n {
		at := b.turn + i
		if at >= n {
			at -= n
		}
		p := b.pods[at%n]
		if p.suspect || b.limits.Concurrency > 0 && p.active >= b.limits.Concurrency {
			continue
		}
		if best == nil || p.active < best.active {
			best = p
			if p.active == 0 {
				b.turn = at + 1
				return p
			}
		}
	}
	if b.turn++; b.turn > n {
		b.turn = 0
	}
	return best
}
