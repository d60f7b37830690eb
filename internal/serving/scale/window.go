// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"math"
	"time"
)

// bucket is the length of time that one value stands for.
const bucket = time.Second

// window holds a value per second of the stable window; the panic window is
// its newest part. Buckets are numbered by Unix time. A window that holds
// only zeros has no buckets: most revisions are idle.
type window struct {
	buckets     []float64
	size, panic int64
	// last is the newest bucket that was written. first is the oldest that
	// counts for the stable window, panicFirst for the panic window: after a
	// gap as long as the window, averages begin anew.
	first, panicFirst, last int64
}

// buckets is how many buckets cover d.
func buckets(d time.Duration) int64 {
	return max(1, int64(math.Ceil(float64(d)/float64(bucket))))
}

func (w *window) resize(spec *Spec) {
	size, short := buckets(spec.StableWindow), min(buckets(spec.PanicWindow), buckets(spec.StableWindow))
	if size == w.size && short == w.panic {
		return
	}
	if w.buckets != nil {
		next := make([]float64, size)
		for i := range min(size, w.size) {
			next[(w.last-i)%size] = w.buckets[(w.last-i)%w.size]
		}
		w.buckets = next
	}
	// What a shorter window has forgotten cannot count as zero.
	w.first = max(w.first, w.last-w.size+1)
	w.panicFirst = max(w.panicFirst, w.last-w.size+1)
	w.size, w.panic = size, short
}

// empty reports whether nothing was written for the length of the window.
func (w *window) empty(now int64) bool { return w.last == 0 || now-w.last > w.size }

// loaded reports whether any bucket is not zero.
func (w *window) loaded() bool { return w.buckets != nil }

// add adds a value to the bucket of the second at.
func (w *window) add(at int64, value float64) {
	if at <= w.last-w.size {
		return // forgotten by now
	}
	if at-w.last >= w.size {
		w.first = at
	}
	if at-w.last >= w.panic {
		w.panicFirst = at
	}
	if at > w.last {
		w.advance(at)
	}
	w.first = min(w.first, at)
	if at > w.last-w.panic {
		w.panicFirst = min(w.panicFirst, at)
	}
	if value == 0 {
		return
	}
	if w.buckets == nil {
		w.buckets = make([]float64, w.size)
	}
	w.buckets[at%w.size] += value
}

// fill says that all buckets from since to upTo that were not written are
// zero.
func (w *window) fill(since, upTo int64) {
	if upTo <= w.last {
		return
	}
	if since > w.last+1 || w.last == 0 {
		// The time before since is not known: a gap.
		w.add(min(max(since, upTo-w.size+1), upTo), 0)
	}
	w.advance(upTo)
}

// advance clears the buckets up to the second at, which becomes the newest.
func (w *window) advance(at int64) {
	if w.buckets != nil && at-w.last < w.size {
		for i := w.last + 1; i <= at; i++ {
			w.buckets[i%w.size] = 0
		}
		for _, v := range w.buckets {
			if v != 0 {
				w.last = at
				return
			}
		}
	}
	w.buckets = nil
	w.last = at
}

// average returns the average over the stable and the panic window.
func (w *window) average(spec *Spec, now int64) (stable, panicked float64) {
	if w.buckets == nil || w.empty(now) {
		return 0, 0
	}
	if spec.Weighted {
		return w.decayed(now, w.size), w.decayed(now, w.panic)
	}
	return w.even(now, w.size, w.first), w.even(now, w.panic, w.panicFirst)
}

// even weighs all buckets alike. Only those that were written count: not
// those before the first, nor those after the last.
func (w *window) even(now, size, first int64) float64 {
	now = max(now, w.last)
	gap := now - w.last
	if gap >= size {
		return 0
	}
	sum := 0.
	for i := now - size + 1; i <= w.last; i++ {
		sum += w.buckets[i%w.size]
	}
	count := min(w.last-first+1, size-gap)
	return math.Round(sum/float64(count)*1e6) / 1e6
}

// decayed weighs each bucket less than the one after it, so that the weights
// of a full window sum to 0.9999, but never decays slower than by a fifth.
func (w *window) decayed(now, size int64) float64 {
	now = max(now, w.last)
	if now-w.last > size {
		return 0
	}
	decay := max(0.2, 1-math.Pow(1-0.9999, 1/float64(size)))
	weight := decay * math.Pow(1-decay, float64(now-w.last))
	sum := 0.
	for i := w.last; i > now-size; i-- {
		sum += w.buckets[i%w.size] * weight
		weight *= 1 - decay
	}
	return sum
}

// peaks remembers the highest number of a sliding window: only those that no
// later one exceeds, oldest and highest first.
type peaks struct{ kept []peak }

type peak struct {
	tick int64
	pods int32
}

// add adds the number of a tick and returns the highest of the last size ticks.
func (p *peaks) add(tick, size int64, pods int32) int32 {
	for len(p.kept) > 0 && p.kept[0].tick <= tick-size {
		p.kept = p.kept[1:]
	}
	for n := len(p.kept); n > 0 && p.kept[n-1].pods <= pods; n = len(p.kept) {
		p.kept = p.kept[:n-1]
	}
	// Of two numbers in one tick the higher counts, not the later.
	if n := len(p.kept); n == 0 || p.kept[n-1].tick != tick {
		p.kept = append(p.kept, peak{tick, pods})
	}
	return p.kept[0].pods
}
