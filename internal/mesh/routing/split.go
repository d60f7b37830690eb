// SPDX-License-Identifier: Apache-2.0

package routing

import "sync/atomic"

// wheelSize is the resolution of a split: shares are in percent.
const wheelSize = 100

// Split chooses revisions by their shares. Of any hundred choices in a row,
// each revision gets exactly its percentage, spread as evenly as it can be.
type Split struct {
	shares []Share
	wheel  *[wheelSize]uint8 // nil when there is one share only
	cursor *atomic.Uint32
}

// NewSplit builds a split. Shares without a percentage are left out; when
// those that are left do not add up to a hundred, they keep their ratio.
func NewSplit(shares []Share) *Split {
	s := &Split{cursor: new(atomic.Uint32)}
	for _, share := range shares {
		if share.Percent > 0 && len(s.shares) < wheelSize {
			s.shares = append(s.shares, share)
		}
	}
	if len(s.shares) > 1 {
		s.wheel = spin(s.shares)
	}
	return s
}

// spin deals the slots of a wheel: at each slot everybody is credited with his
// share, and whoever has the largest credit takes it and pays the whole.
func spin(shares []Share) *[wheelSize]uint8 {
	total := 0
	for _, s := range shares {
		total += s.Percent
	}
	var wheel [wheelSize]uint8
	credit := make([]int, len(shares))
	for slot := range wheel {
		best := 0
		for i, s := range shares {
			credit[i] += s.Percent
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= total
		wheel[slot] = uint8(best)
	}
	return &wheel
}

// Next chooses a revision. It reports false when the split is empty.
func (s *Split) Next() (Name, bool) {
	switch {
	case s == nil || len(s.shares) == 0:
		return Name{}, false
	case s.wheel == nil:
		return s.shares[0].Revision, true
	}
	return s.shares[s.wheel[(s.cursor.Add(1)-1)%wheelSize]].Revision, true
}

// Shares returns the shares that are not zero.
func (s *Split) Shares() []Share {
	if s == nil {
		return nil
	}
	return s.shares
}

// continues lets a split go on where the one it replaces has stopped.
func (s *Split) continues(old *Split) {
	if s != nil && old != nil {
		s.cursor = old.cursor
	}
}
