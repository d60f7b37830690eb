// SPDX-License-Identifier: Apache-2.0

// Package load defines the load samples that the data plane sends to the autoscaler.
//
// The data plane posts a Batch to Path on the control socket once a second,
// and at once, between those, when a request finds no pod to go to (a Poke).
// A batch whose Span is not zero speaks for every revision: one that is not
// listed had no request in that time. So revisions without load cost nothing,
// and a batch without samples still says that the data plane is alive.
//
// Batches may be lost, and either side may start first. Every sample therefore
// repeats what a lost poke said (Held and Ready), and nothing is sent twice:
// a batch that could not be delivered is dropped, and the next one covers
// only its own time.
package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

const (
	// Path is where the autoscaler takes batches (POST), answering 204.
	Path = "/stats"

	// ContentType is the media type of an encoded batch.
	ContentType = "application/json"

	// Interval is how often the data plane sends a batch.
	Interval = time.Second

	// PatientFor is how long requests may wait before their number counts. The
	// first poke asks for one pod. One pod may well drain them all, so only
	// when some still wait after this time is the revision sized by InFlight.
	// Re-poke then, and after each doubling of the time, while requests wait.
	PatientFor = 100 * time.Millisecond

	// MaxBytes bounds an encoded batch: 30,000 samples of a common length.
	MaxBytes = 4 << 20

	version    = 1
	maxEntries = 100_000
	maxSpan    = time.Hour
	maxCount   = 1 << 40
	// An object name has at most 253 characters, a namespace 63.
	maxName = 253
)

// Revision names a revision.
type Revision struct {
	Namespace string `json:"ns"`
	Name      string `json:"n"`
}

// String returns namespace/name.
func (r Revision) String() string { return r.Namespace + "/" + r.Name }

// A Sample is the load of one revision during the Span of its batch.
type Sample struct {
	Revision

	// Concurrency is the number of requests in the data plane or in a pod,
	// averaged over the span by time: a request that waits for a pod counts.
	Concurrency float64 `json:"c,omitempty"`
	// Requests is how many requests arrived during the span.
	Requests int64 `json:"r,omitempty"`
	// InFlight is how many requests there are at the end of the span.
	InFlight int64 `json:"f,omitempty"`
	// Held is how many of these wait for a pod.
	Held int64 `json:"h,omitempty"`
	// Ready is how many pods can be sent requests at the end of the span.
	Ready int64 `json:"p,omitempty"`
}

// A Poke says that requests wait and no pod can take them.
type Poke struct {
	Revision

	// InFlight is how many requests of this revision there are now.
	InFlight int64 `json:"f"`
	// Waited is how long the oldest of them has been waiting.
	Waited time.Duration `json:"w,omitempty"`
}

// A Batch is what the data plane sends.
type Batch struct {
	// Span is the time since the previous complete batch; zero when this one
	// only carries pokes.
	Span    time.Duration
	Samples []Sample
	Pokes   []Poke
}

// wire is a Batch with its version.
type wire struct {
	Version int           `json:"v"`
	Span    time.Duration `json:"t,omitempty"`
	Samples []Sample      `json:"s,omitempty"`
	Pokes   []Poke        `json:"p,omitempty"`
}

// Encode returns the batch as it is sent.
func Encode(b Batch) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	out, err := json.Marshal(wire{version, b.Span, b.Samples, b.Pokes})
	if err != nil {
		return nil, fmt.Errorf("encoding load: %w", err)
	}
	if len(out) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(out))
	}
	return out, nil
}

// ErrTooLarge says that a batch is over MaxBytes.
var ErrTooLarge = errors.New("load: batch too large")

// Decode reads what Encode wrote, and refuses everything that Encode would
// not have written.
func Decode(data []byte) (Batch, error) {
	if len(data) > MaxBytes {
		return Batch{}, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(data))
	}
	var w wire
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&w); err != nil {
		return Batch{}, fmt.Errorf("decoding load: %w", err)
	}
	if w.Version != version {
		return Batch{}, fmt.Errorf("decoding load: version %d, want %d", w.Version, version)
	}
	if dec.More() {
		return Batch{}, errors.New("decoding load: trailing data")
	}
	b := Batch{w.Span, w.Samples, w.Pokes}
	return b, b.check()
}

func (b Batch) check() error {
	if b.Span < 0 || b.Span > maxSpan {
		return fmt.Errorf("load: span %v is out of range", b.Span)
	}
	if len(b.Samples)+len(b.Pokes) > maxEntries {
		return fmt.Errorf("load: %d entries, at most %d", len(b.Samples)+len(b.Pokes), maxEntries)
	}
	for i := range b.Samples {
		s := &b.Samples[i]
		if err := s.Revision.check(); err != nil {
			return err
		}
		if !(s.Concurrency >= 0 && s.Concurrency <= maxCount) || math.IsNaN(s.Concurrency) ||
			!countable(s.Requests, s.InFlight, s.Held, s.Ready) {
			return fmt.Errorf("load: sample of %s is out of range", s.Revision)
		}
	}
	for i := range b.Pokes {
		p := &b.Pokes[i]
		if err := p.Revision.check(); err != nil {
			return err
		}
		if !countable(p.InFlight) || p.Waited < 0 {
			return fmt.Errorf("load: poke of %s is out of range", p.Revision)
		}
	}
	return nil
}

func (r Revision) check() error {
	if r.Namespace == "" || r.Name == "" || len(r.Namespace) > maxName || len(r.Name) > maxName {
		return fmt.Errorf("load: not the name of a revision: %.80q", r.String())
	}
	return nil
}

func countable(counts ...int64) bool {
	for _, c := range counts {
		if c < 0 || c > maxCount {
			return false
		}
	}
	return true
}
