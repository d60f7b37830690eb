// SPDX-License-Identifier: Apache-2.0

package scale

import "time"

// step moves the revision through its phases by at most one.
func (s *State) step(spec *Spec, seen Seen, now time.Time) (want int32, write bool, again earliest) {
	want, write = s.allow(spec, seen, now, &again)
	s.setMode(want, now)
	s.setPhase(spec, seen, want, now)
	return want, write && want != seen.Replicas, again
}

// allow turns the wish into what may be asked for now: within the bounds, and
// zero only after the revision has been without load long enough. It reports
// the pods that are wanted and whether to ask for them.
func (s *State) allow(spec *Spec, seen Seen, now time.Time, again *earliest) (int32, bool) {
	if s.desired < 0 && s.phase != Activating {
		return s.desired, false
	}
	least := spec.Min
	if spec.Initial > 1 && !s.initialized && spec.Reachable {
		least = max(spec.Initial, least)
	}
	want := max(s.desired, least)
	if spec.Max != 0 {
		want = min(want, spec.Max)
	}
	switch {
	case want > 0:
		return want, true
	case !spec.ToZero:
		return 1, true
	case s.phase != Activating && seen.Replicas > 0 && !seen.fresh(now):
		// It may well be in use: the data plane is only not telling.
		again.by(now.Add(Tick))
		return Unknown, false
	}
	switch s.phase {
	case Activating:
		return s.giveUp(spec, now, again)
	case Active:
		return s.deactivate(spec, now, again)
	default:
		return s.toZero(spec, now)
	}
}

// giveUp asks for no pods when those asked for have not come in time. While
// requests wait there is a wish for pods, so it does not get here.
func (s *State) giveUp(spec *Spec, now time.Time, again *earliest) (int32, bool) {
	deadline := s.phaseSince.Add(spec.ActivationTimeout)
	if now.After(deadline) {
		return 0, true
	}
	again.by(deadline.Add(1))
	return Unknown, false
}

// deactivate wants no pods once the revision has been active for a stable
// window: that changes its phase, and the next decision takes the pods away.
func (s *State) deactivate(spec *Spec, now time.Time, again *earliest) (int32, bool) {
	if idle := s.phaseSince.Add(spec.StableWindow); now.Before(idle) {
		again.by(idle)
		return 1, true
	}
	return 0, false
}

// toZero takes the last pods away when the last pod was kept as long as it
// should be, and requests have gone by the activator for the grace period.
func (s *State) toZero(spec *Spec, now time.Time) (int32, bool) {
	if now.Before(s.zeroAt(spec)) {
		return 0, false
	}
	return 0, true
}

func (s *State) zeroAt(spec *Spec) time.Time {
	retention := spec.Retention
	if !spec.Reachable {
		retention = 0
	}
	// Whatever the mode, both periods after the load ended are enough.
	latest := s.phaseSince.Add(max(spec.Grace, retention))
	at := s.phaseSince.Add(retention)
	if byMode := s.modeSince.Add(spec.Grace); byMode.After(at) {
		at = byMode
	}
	if at.After(latest) {
		return latest
	}
	return at
}

func (s *State) setMode(want int32, now time.Time) {
	mode := Proxy
	if want > 0 && s.excess >= 0 {
		mode = Serve
	}
	if mode != s.mode {
		s.mode, s.modeSince = mode, now
	}
}

// setPhase follows this table; least is what must be ready to be active.
//
//	want  ready      was         becomes
//	0     any        any         inactive
//	> 0   < least    any         activating
//	> 0   >= least   any         active
//	?     < least    inactive    inactive, else activating
//	?     >= least   inactive    inactive, else active
//
// Where no pod is needed at first (least is 0), it begins inactive.
func (s *State) setPhase(spec *Spec, seen Seen, want int32, now time.Time) {
	least := max(spec.Min, 1)
	if !s.initialized {
		least = max(spec.Min, spec.Initial)
	}
	if seen.Ready >= least {
		s.initialized = true
	}
	switch {
	case want == 0 || least == 0:
		reason := NoTraffic
		if s.phase == Activating && least > 0 {
			reason = TimedOut
		}
		s.enter(Inactive, reason, now)
	case want < 0 && s.phase == Inactive:
	case seen.Ready < least:
		s.enter(Activating, Queued, now)
	default:
		s.enter(Active, NoReason, now)
	}
}

// enter changes the phase. Why a revision became inactive stays true for as
// long as it is.
func (s *State) enter(phase Phase, reason Reason, now time.Time) {
	if phase == s.phase && phase == Inactive {
		return
	}
	if phase != s.phase {
		s.phaseSince = now
	}
	s.phase, s.reason = phase, reason
}

// schedule finds when the decision may change by itself.
func (s *State) schedule(spec *Spec, seen Seen, write bool, now time.Time, again *earliest) {
	moving := s.load.loaded() || s.panicking || s.held
	if moving || seen.Ready > 0 && !s.valid {
		again.by(now.Add(Tick))
	}
	switch {
	case s.phase == Inactive && seen.Replicas > 0 && s.desired == 0 && !write:
		again.by(s.zeroAt(spec))
	case s.phase == Activating:
		if at := s.phaseSince.Add(spec.ActivationTimeout).Add(1); now.Before(at) {
			again.by(at)
		}
	}
}
