// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/sonagi/sonagi/internal/serving/load"
	"github.com/sonagi/sonagi/internal/serving/scale"
)

const (
	// gap is how much time between two reports is too much to be taken for
	// slowness. What happened in it is not known.
	gap = 5 * time.Second

	// coldFor is how long after the first request to no pods the number of
	// waiting requests counts: until regular reports tell more.
	coldFor = 3 * time.Second

	// podTime is about what it takes a machine to start one more pod. Asking
	// for pods faster than they can come gains nothing, and most short bursts
	// are over when the first has come: so requests that wait are worth one
	// pod for each such time they have waited.
	podTime = 25 * time.Millisecond
)

// ServeHTTP takes a batch of load from the data plane.
func (a *Autoscaler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "load is posted", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, load.MaxBytes))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		http.Error(w, "load: too much", http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	batch, err := load.Decode(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.Take(batch, time.Now())
	w.WriteHeader(http.StatusNoContent)
}

// Take takes a batch of load that arrived at now.
func (a *Autoscaler) Take(b load.Batch, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range b.Pokes {
		p := &b.Pokes[i]
		if r := a.revisions[p.Revision]; r != nil {
			r.press(p.InFlight, p.Waited, now)
			a.decide(r, now)
		}
	}
	if b.Span > 0 {
		a.cover(now.Add(-b.Span), now)
	}
	for i := range b.Samples {
		if r := a.revisions[b.Samples[i].Revision]; r != nil {
			a.sample(r, &b.Samples[i], b.Span, now)
		}
	}
}

// cover notes that all load between two times has been told.
func (a *Autoscaler) cover(since, until time.Time) {
	if since.Sub(a.covered) > gap {
		a.coveredSince = since
	}
	a.covered = until
}

// press notes that requests wait. Their number counts only where there were
// no pods: elsewhere averages tell better.
func (r *revision) press(inFlight int64, waited time.Duration, now time.Time) {
	if r.replicas() <= 0 || r.target.ready == 0 {
		r.cold = now.Add(coldFor)
	}
	r.surge = 1
	if waited >= load.PatientFor {
		r.surge = max(1, min(float64(inFlight), float64(waited/podTime)*r.spec.Target))
	}
}

// sample records the load of one revision. Its next regular decision will
// take it into account; only what cannot wait is decided upon now.
func (a *Autoscaler) sample(r *revision, s *load.Sample, span time.Duration, now time.Time) {
	quiet := r.state.Quiet()
	r.surge = 0
	r.state.Record(&r.spec, now, span, s.Concurrency, float64(s.Requests))
	switch {
	case s.Held > 0 && s.Ready == 0:
		// The poke may have been lost.
		r.press(s.InFlight, 0, now)
		a.decide(r, now)
	case quiet || r.beyond(s, span):
		a.decide(r, now)
	}
}

// beyond reports whether the load is more than the wanted pods should have.
func (r *revision) beyond(s *load.Sample, span time.Duration) bool {
	value := s.Concurrency
	if r.spec.Metric == scale.RPS && span > 0 {
		value = float64(s.Requests) / span.Seconds()
	}
	return value > float64(max(1, r.facts.desired))*r.spec.Target
}
