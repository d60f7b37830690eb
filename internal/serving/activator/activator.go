// SPDX-License-Identifier: Apache-2.0

// Package activator holds a request until a pod can take it.
//
// It keeps one breaker for each revision that has had a request, with the pods
// that are ready. While a request has a pod to go to, Try is all that happens:
// one lookup and one lock. When it has none, Reserve makes it wait in line and
// pokes the autoscaler: at once, and then again after load.PatientFor and each
// doubling of that time, for as long as somebody waits. News of a pod
// (SetEndpoint) serves the line in the same call, without a further step.
//
// Wiring: mesh/gateway is given the Activator as its Pods; node/agent's
// OnEndpoint, or on a cluster mesh/watch, calls SetEndpoint; serving/queue's
// Reporter is given Sample and takes the pokes; mesh/watch calls Forget for
// deleted revisions.
package activator

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/serving/load"
)

// Activator gives requests places in pods.
type Activator struct {
	poke  func(load.Poke)
	epoch time.Time

	endpoints routing.Endpoints
	halls     sync.Map // routing.Name → *hall
	mu        sync.Mutex
	sampled   time.Duration // guarded by mu
}

// New returns an activator. Poke tells the autoscaler that requests wait; it
// must not block.
func New(poke func(load.Poke)) *Activator {
	return &Activator{poke: poke, epoch: time.Now()}
}

// hall is where the requests of one revision wait.
type hall struct {
	*breaker.Breaker
	name     routing.Name
	revision atomic.Pointer[routing.Revision] // that limits and port were taken from

	mu       sync.Mutex
	poking   bool                     // somebody waits, and control was told
	distrust map[string]time.Duration // how long a pod was kept apart last time
}

// Try takes a place if a pod has one now.
func (a *Activator) Try(revision *routing.Revision) (breaker.Lease, bool) {
	return a.hall(revision).Try(a.now())
}

// Reserve takes a place, and waits for one until ctx ends. It returns
// breaker.ErrFull when too many wait already.
func (a *Activator) Reserve(ctx context.Context, revision *routing.Revision) (breaker.Lease, error) {
	h := a.hall(revision)
	w, err := h.Wait(a.now())
	if err != nil {
		return breaker.Lease{}, err
	}
	return a.wait(ctx, h, w)
}

// Elsewhere exchanges a place in a pod that could not be reached for another,
// in the same pod only after a while. When it fails, the place is given back.
func (a *Activator) Elsewhere(ctx context.Context, revision *routing.Revision, lease breaker.Lease) (breaker.Lease, error) {
	h := a.hall(revision)
	a.distrust(h, lease.Pod())
	return a.wait(ctx, h, lease.Again(a.now()))
}

// Ready is how many pods a revision has.
func (a *Activator) Ready(revision *routing.Revision) int {
	return len(a.endpoints.Ready(revision.Name))
}

// Release gives a place back: the request is over.
func (a *Activator) Release(lease breaker.Lease) { lease.Done(a.now()) }

func (a *Activator) wait(ctx context.Context, h *hall, w *breaker.Waiter) (breaker.Lease, error) {
	select {
	case <-w.Ready():
		return w.Take(), nil
	default:
	}
	a.need(h)
	select {
	case <-w.Ready():
		return w.Take(), nil
	case <-ctx.Done():
		w.Abandon(a.now())
		return breaker.Lease{}, context.Cause(ctx)
	}
}

// need pokes the autoscaler, unless that is being done.
func (a *Activator) need(h *hall) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.poking {
		h.poking = true
		a.press(h, 0)
	}
}

// press pokes, some time after the need began, and comes back when as much
// time has passed once more to see whether that has helped.
func (a *Activator) press(h *hall, since time.Duration) {
	state := h.State(a.now())
	a.poke(load.Poke{
		Revision: load.Revision(h.name),
		InFlight: int64(max(1, state.InFlight)),
		Waited:   state.Waited,
	})
	patience := min(max(load.PatientFor, since), maxPatience)
	time.AfterFunc(patience, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.State(a.now()).Held == 0 {
			h.poking = false
			return
		}
		a.press(h, since+patience)
	})
}

const (
	maxPatience = 30 * time.Second

	// A pod that refuses connections although it is said to be ready is either
	// just going, of which news comes in milliseconds, or restarting.
	minDistrust = 20 * time.Millisecond
	maxDistrust = time.Second
)

// distrust keeps requests away from a pod for a while, each time for longer.
func (a *Activator) distrust(h *hall, pod *breaker.Pod) {
	if !h.Suspect(pod) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.distrust == nil {
		h.distrust = map[string]time.Duration{}
	}
	d := min(max(minDistrust, 2*h.distrust[pod.ID]), maxDistrust)
	h.distrust[pod.ID] = d
	time.AfterFunc(d, func() { h.Trust(pod) })
}

// hall finds or makes the hall of a revision.
func (a *Activator) hall(revision *routing.Revision) *hall {
	if v, ok := a.halls.Load(revision.Name); ok {
		h := v.(*hall)
		if h.revision.Load() == revision {
			return h
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.halls.Load(revision.Name)
	if !ok {
		v = &hall{Breaker: breaker.New(limits(revision), a.now()), name: revision.Name}
	}
	h := v.(*hall)
	h.revision.Store(revision)
	h.SetLimits(limits(revision))
	h.fill(a.endpoints.Ready(revision.Name))
	if !ok {
		a.halls.Store(revision.Name, h)
	}
	return h
}

// fill tells the breaker of the ready pods.
func (h *hall) fill(ready []routing.Endpoint) {
	h.mu.Lock()
	h.distrust = nil
	h.mu.Unlock()
	port := h.revision.Load().Port
	spots := make([]breaker.Spot, 0, len(ready))
	for _, e := range ready {
		spots = append(spots, breaker.Spot{ID: e.UID, Addr: netip.AddrPortFrom(e.IP, port)})
	}
	h.SetPods(spots)
}

func limits(r *routing.Revision) breaker.Limits {
	return breaker.Limits{Concurrency: r.Concurrency, Queue: r.Queue}
}

// SetEndpoint takes in news of a pod. When it returns, a pod that is ready has
// been given requests that waited, and one that is not gets no more.
func (a *Activator) SetEndpoint(pod routing.Endpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ready, changed := a.endpoints.Apply(pod)
	if !changed {
		return
	}
	if v, ok := a.halls.Load(pod.Revision); ok {
		v.(*hall).fill(ready)
	}
}

// streamsFor is how long a pod that leaves is kept from its signal for the sake
// of streams alone. It is Knative's: an app may then take its leave of clients
// that would stay for hours.
const streamsFor = 30 * time.Second

// Drained waits until no request is in a pod that SetEndpoint has said is gone
// or not ready; for streams, only so long.
func (a *Activator) Drained(ctx context.Context, revision routing.Name, uid string) error {
	v, ok := a.halls.Load(revision)
	if !ok {
		return nil
	}
	idle, calm := v.(*hall).Drain(uid)
	patience := time.NewTimer(streamsFor)
	defer patience.Stop()
	select {
	case <-idle:
		return nil
	case <-patience.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-calm: // closed no later than idle
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Forget drops the hall of a revision that is no more, if it is empty.
func (a *Activator) Forget(revision routing.Name) {
	if v, ok := a.halls.Load(revision); ok && v.(*hall).State(a.now()).InFlight == 0 {
		a.halls.CompareAndDelete(revision, v)
	}
}

// Sample returns the load of all revisions that had any since it was called
// last, and how long ago that was.
func (a *Activator) Sample() (time.Duration, []load.Sample) {
	a.mu.Lock()
	now := a.now()
	span := now - a.sampled
	a.sampled = now
	a.mu.Unlock()
	var samples []load.Sample
	a.halls.Range(func(key, value any) bool {
		l := value.(*hall).Sample(now)
		if l.Requests == 0 && l.InFlight == 0 && l.Concurrency == 0 || span <= 0 {
			return true
		}
		samples = append(samples, load.Sample{
			Revision: load.Revision(key.(routing.Name)),
			// A hall that was opened in between has a shorter span.
			Concurrency: l.Concurrency * float64(l.Span) / float64(span),
			Requests:    l.Requests,
			InFlight:    int64(l.InFlight),
			Held:        int64(l.Held),
			Ready:       int64(l.Ready),
		})
		return true
	})
	return span, samples
}

// States calls fn with what each revision that has had a request holds now.
func (a *Activator) States(fn func(*routing.Revision, breaker.State)) {
	now := a.now()
	a.halls.Range(func(_, value any) bool {
		h := value.(*hall)
		fn(h.revision.Load(), h.State(now))
		return true
	})
}

func (a *Activator) now() time.Duration { return time.Since(a.epoch) }
