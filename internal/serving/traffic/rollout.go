// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// A Rollout moves the requests of a target that follows the newest ready revision from the
// revision before to it, step by step. It is kept between decisions, as JSON.
type Rollout struct {
	Configuration string        `json:"configuration"`
	Tag           string        `json:"tag,omitempty"`
	Parts         []Part        `json:"parts"`           // oldest first; the last one gains
	Started       time.Time     `json:"started"`         // when the newest revision appeared
	Next          time.Time     `json:"next,omitzero"`   // when to take the next step; not set until the first one is served
	Every         time.Duration `json:"every,omitempty"` // time between steps
	Step          int64         `json:"step,omitempty"`  // percent a step moves
}

// A Part is what a revision gets of a rollout.
type Part struct {
	Revision string `json:"revision"`
	Percent  int64  `json:"percent"`
}

func (r *Rollout) done() bool { return len(r.Parts) < 2 }

// Roll spreads shares over time. Before are the rollouts of the last decision, served says
// whether that decision is in effect. It returns the shares of this moment, the rollouts to
// keep, and when to decide again; the zero time means that nothing is under way.
func Roll(shares []Share, before []Rollout, over time.Duration, served bool, now time.Time) ([]Share, []Rollout, time.Time) {
	var out []Share
	var keep []Rollout
	var wake time.Time
	for _, s := range shares {
		if !s.Latest || s.Percent == 0 {
			out = append(out, s)
			continue
		}
		r := Rollout{Configuration: s.Configuration, Tag: s.Tag, Parts: []Part{{s.Revision, s.Percent}}}
		i := slices.IndexFunc(before, func(b Rollout) bool { return b.Configuration == s.Configuration && b.Tag == s.Tag })
		if i >= 0 && over > 0 && s.Percent > 1 {
			r = next(before[i], s, over, served, now)
		}
		for _, p := range r.Parts {
			part := s
			part.Revision, part.Percent = p.Revision, p.Percent
			out = append(out, part)
		}
		keep = append(keep, r)
		if !r.done() && !r.Next.IsZero() && (wake.IsZero() || r.Next.Before(wake)) {
			wake = r.Next
		}
	}
	slices.SortFunc(keep, func(a, b Rollout) int {
		return cmp.Or(cmp.Compare(a.Tag, b.Tag), cmp.Compare(a.Configuration, b.Configuration))
	})
	return out, keep, wake
}

// next continues a rollout, or begins one where a new revision has appeared.
func next(r Rollout, s Share, over time.Duration, served bool, now time.Time) Rollout {
	r.Parts = fit(slices.Clone(r.Parts), s.Percent)
	if len(r.Parts) == 0 {
		r.Parts = []Part{{s.Revision, s.Percent}}
	}
	if r.Parts[len(r.Parts)-1].Revision != s.Revision {
		return begin(r, s, now)
	}
	switch {
	case r.done():
		r.Started, r.Next, r.Every, r.Step = time.Time{}, time.Time{}, 0, 0
	case r.Next.IsZero() && served:
		r = pace(r, s.Percent, over, now)
	case !r.Next.IsZero() && !now.Before(r.Next):
		r = step(r, now)
	}
	return r
}

// begin gives a new revision its first percent, at the cost of the newest before it.
func begin(r Rollout, s Share, now time.Time) Rollout {
	r.Parts = slices.DeleteFunc(r.Parts, func(p Part) bool { return p.Revision == s.Revision })
	if last := len(r.Parts) - 1; last >= 0 {
		r.Parts[last].Percent--
	}
	r.Parts = append(slices.DeleteFunc(r.Parts, func(p Part) bool { return p.Percent <= 0 }), Part{s.Revision, 1})
	r.Parts = fit(r.Parts, s.Percent)
	r.Started, r.Next, r.Every, r.Step = now, time.Time{}, 0, 0
	return r
}

// pace plans the steps once the first percent is served. A step takes no less time than that
// first percent took to be served, else one would begin before the last has ended; and it
// moves no less than one percent.
func pace(r Rollout, percent int64, over time.Duration, now time.Time) Rollout {
	least := max(time.Second, now.Sub(r.Started).Round(time.Second))
	left := max(time.Second, over-least)
	steps := max(1, min(int64(left/least), percent-1))
	r.Step = int64(math.Round(float64(percent-1) / float64(steps)))
	r.Every = left / time.Duration(steps)
	r.Next = now.Add(r.Every)
	return r
}

// step moves one step's percentage to the newest revision, from the newest before it first.
func step(r Rollout, now time.Time) Rollout {
	last := len(r.Parts) - 1
	move := r.Step
	for i := last - 1; i >= 0 && move > 0; i-- {
		n := min(move, r.Parts[i].Percent)
		r.Parts[i].Percent -= n
		r.Parts[last].Percent += n
		move -= n
	}
	r.Parts = slices.DeleteFunc(r.Parts, func(p Part) bool { return p.Percent <= 0 })
	if r.done() {
		r.Started, r.Next, r.Every, r.Step = time.Time{}, time.Time{}, 0, 0
		return r
	}
	r.Next = now.Add(r.Every)
	return r
}

// fit makes the parts sum up to percent: what is gained goes to the newest revision, what is
// lost is taken from the oldest.
func fit(parts []Part, percent int64) []Part {
	var sum int64
	for _, p := range parts {
		sum += p.Percent
	}
	if sum < percent && len(parts) > 0 {
		parts[len(parts)-1].Percent += percent - sum
	}
	for i := range parts {
		n := min(max(0, sum-percent), parts[i].Percent)
		parts[i].Percent -= n
		sum -= n
	}
	return slices.DeleteFunc(parts, func(p Part) bool { return p.Percent <= 0 })
}
