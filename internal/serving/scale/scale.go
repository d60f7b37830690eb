// SPDX-License-Identifier: Apache-2.0

// Package scale decides how many pods a revision should have.
//
// It does the arithmetic of Knative's KPA. The observed value (concurrency or
// requests per second) is averaged over a stable and a shorter panic window;
// each average divided by the target is a wish for pods, bounded by how fast
// the number may change. A panic wish that is far above what is ready starts
// panic mode: the number only rises until a stable window has passed without
// another such wish.
//
// Decide is called when something was observed, and again at the time the
// last Decision named. A revision without load that has reached its size names
// none: it costs nothing until somebody asks for it.
//
// Nothing here reads a clock: time is an argument, and must not run backwards
// by more than a window. A State belongs to one caller at a time.
package scale

import (
	"math"
	"time"
)

const (
	// Tick is how often a revision with load is decided upon.
	Tick = 2 * time.Second

	// Unknown is the number of pods before any load was observed.
	Unknown int32 = -1

	// stale is how long the load that was seen last is believed. The data
	// plane reports every second; after five the process is not just slow.
	stale = 5 * time.Second

	// minActivators is the least number of activators in a request path.
	minActivators = 2
)

// Metric is what a revision is scaled by.
type Metric uint8

// The metrics of the KPA.
const (
	Concurrency Metric = iota
	RPS
)

// Spec is how a revision wants to be scaled, with the platform's settings
// filled in. Counts of zero mean "not set".
type Spec struct {
	Metric Metric
	// Target is the value per pod to aim for, Total what a pod can take.
	Target, Total float64
	// Weighted averages by exponential decay, not evenly.
	Weighted bool

	StableWindow, PanicWindow time.Duration
	// PanicThreshold is the factor of wish over ready pods that starts a panic.
	PanicThreshold         float64
	MaxUpRate, MaxDownRate float64
	DownDelay              time.Duration
	BurstCapacity          float64 // -1: unlimited
	ActivatorCapacity      float64
	Min, Max               int32
	Initial, Activation    int32
	Reachable              bool // a route leads here, or it is not known
	ToZero                 bool // scale to zero is enabled
	Grace, Retention       time.Duration
	ActivationTimeout      time.Duration
}

// Seen is what is known besides the recorded load.
type Seen struct {
	// Ready is how many pods are ready, Replicas how many were last asked
	// for (Unknown when there is no target yet).
	Ready, Replicas int32

	// Surge is the least load to reckon with, whatever was recorded: of
	// requests that wait where there were no pods. So the first is enough.
	Surge float64

	// Every moment between CoveredSince and Covered is accounted for: what
	// was not recorded was zero. Both are zero before the first report.
	CoveredSince, Covered time.Time
}

// fresh reports whether the load is known up to about now.
func (s Seen) fresh(now time.Time) bool { return now.Sub(s.Covered) <= stale }

// Phase is the Active condition of a revision.
type Phase uint8

// The phases: pods are wanted and not there; pods take requests; none is wanted.
const (
	Activating Phase = iota
	Active
	Inactive
)

// Reason says why a revision is in its phase.
type Reason uint8

// The reasons.
const (
	NoReason Reason = iota
	Queued
	NoTraffic
	TimedOut
)

// Mode is whether requests go by the activator or straight to the pods.
type Mode uint8

// The modes.
const (
	Proxy Mode = iota
	Serve
)

// A Decision is what to do about a revision.
type Decision struct {
	// Desired is how many pods are wanted, or Unknown.
	Desired int32
	// Write says that Replicas differs from what was asked for before.
	Write    bool
	Replicas int32

	Phase       Phase
	PhaseSince  time.Time
	Reason      Reason
	Initialized bool

	Mode        Mode
	ExcessBurst int32
	Activators  int32
	Panicking   bool
	// Stable and Panic are the averages that were decided upon.
	Stable, Panic float64

	// Again is when to decide again if nothing happens before; the zero time
	// when only an event can change the decision.
	Again time.Time
}

// State is what a revision's decisions depend on besides what is seen. Its
// zero value is a revision that has just been created.
type State struct {
	load  window
	peaks peaks

	desired     int32
	valid       bool // desired was decided from load, not just begun with
	excess      int32
	held        bool // by something that will pass: time can change desired
	begun       bool
	filling     bool
	panicking   bool
	panicSince  time.Time
	panicPods   int32
	born        time.Time
	adopted     bool
	phase       Phase
	reason      Reason
	phaseSince  time.Time
	initialized bool
	mode        Mode
	modeSince   time.Time
}

// Adopt returns the State of a revision that was there before the autoscaler.
// Its load is not known: what runs keeps running until a stable window has
// been observed.
func Adopt(phase Phase, reason Reason, since time.Time, initialized bool, ready int32, now time.Time) State {
	s := State{
		adopted: true, phase: phase, reason: reason, phaseSince: since, initialized: initialized,
		begun: true, desired: Unknown, born: now, modeSince: now,
	}
	if ready > 1 {
		s.panicking, s.panicSince, s.panicPods = true, now, ready
	}
	return s
}

// Record adds what was observed in the span of time that ended at at: the
// average concurrency, and the number of requests.
func (s *State) Record(spec *Spec, at time.Time, span time.Duration, concurrency, requests float64) {
	s.load.resize(spec)
	n := max(1, int64(span.Round(time.Second)/time.Second))
	value := concurrency
	switch {
	case spec.Metric == RPS:
		value = requests / float64(n)
	case span < time.Second/2:
		// Less than a bucket: other reports fill the rest of it.
		value *= span.Seconds()
	}
	// A report of several seconds fills the buckets that would be missing.
	last := at.Unix()
	for i := max(last-n+1, last-s.load.size+1, s.load.last+1); i < last; i++ {
		s.load.add(i, value)
	}
	s.load.add(last, value)
}

// Quiet reports whether no load is remembered. Load that then comes should be
// decided upon at once; later load waits for the time the Decision named.
func (s *State) Quiet() bool { return !s.load.loaded() }

// Decide says what to do about the revision now.
func Decide(spec *Spec, seen Seen, s *State, now time.Time) Decision {
	s.begin(spec, now)
	s.load.resize(spec)
	s.catchUp(seen, now)
	d := Decision{}
	s.recommend(spec, seen, now, &d)
	want, write, again := s.step(spec, seen, now)
	for before := s.phase; !write; before = s.phase {
		// Entering a phase may allow what the one before did not.
		want, write, again = s.step(spec, seen, now)
		if s.phase == before {
			break
		}
	}
	s.schedule(spec, seen, write, now, &again)

	d.Desired = want
	if write && want >= 0 && seen.Replicas != Unknown && want != seen.Replicas {
		d.Write, d.Replicas = true, want
	}
	d.Phase, d.PhaseSince, d.Reason, d.Initialized = s.phase, s.phaseSince, s.reason, s.initialized
	d.Mode, d.ExcessBurst, d.Panicking = s.mode, s.excess, s.panicking
	d.Activators = activators(spec, seen.Ready)
	d.Again = again.at
	return d
}

func (s *State) begin(spec *Spec, now time.Time) {
	if s.begun && s.valid {
		return
	}
	if !s.begun {
		s.begun, s.desired, s.born = true, Unknown, now
		s.phaseSince, s.modeSince = now, now
	}
	// Before there is load, the initial scale is the capacity to expect.
	switch spec.BurstCapacity {
	case -1, 0:
		s.excess = int32(spec.BurstCapacity)
	default:
		s.excess = whole(float64(spec.Initial)*spec.Total - spec.BurstCapacity)
	}
}

// catchUp records the zeros nobody sends. While pods are ready, or a load
// was observed lately, a revision that is not in a report had none. Without
// pods it is the other way round: nobody measures, and the first load to come
// must not be thinned by the quiet before it.
func (s *State) catchUp(seen Seen, now time.Time) {
	switch {
	case seen.Covered.IsZero():
	case s.filling || !s.load.empty(now.Unix()):
		s.load.fill(seen.CoveredSince.Unix(), seen.Covered.Unix())
	case seen.Ready > 0:
		s.load.add(seen.Covered.Unix(), 0)
	}
	s.filling = seen.Ready > 0
}

// recommend does the arithmetic: it sets the wish for pods, when there is
// something to base it on.
func (s *State) recommend(spec *Spec, seen Seen, now time.Time, d *Decision) {
	at := now.Unix()
	known := seen.fresh(now) && (!s.load.empty(at) || spec.BurstCapacity == -1)
	if !known && seen.Surge == 0 {
		return
	}
	if s.load.empty(at) {
		// From here on silence means that there is no load any more.
		s.load.add(at, 0)
	}
	d.Stable, d.Panic = s.load.average(spec, at)
	d.Stable, d.Panic = max(d.Stable, seen.Surge), max(d.Panic, seen.Surge)
	ready := max(1, float64(seen.Ready))
	wanted := s.panicOr(spec, seen, wishes(spec, ready, d.Stable, d.Panic), now)
	pods := s.delay(spec, wanted, now)
	if pods < seen.Replicas && now.Before(s.trusted(spec, seen)) {
		pods = seen.Replicas
	}
	s.desired, s.valid = pods, true
	s.held = pods != wanted || seen.Surge > 0
	s.excess = excess(spec, seen.Ready, d.Panic)
}

// wish is how many pods the two windows ask for, and whether that is panic.
type wish struct {
	stable, panic int32
	over          bool
}

func wishes(spec *Spec, ready, stable, panicked float64) wish {
	// At least one more or one less is allowed, however slow the rates are:
	// 2 pods and a rate of 1.1 could otherwise never become 3.
	most := math.Ceil(spec.MaxUpRate * ready)
	least := 0.
	if spec.Reachable {
		least = math.Floor(ready / spec.MaxDownRate)
	}
	bound := func(average float64) (raw float64, pods int32) {
		raw = math.Ceil(average / spec.Target)
		pods = whole(min(max(raw, least), most))
		if spec.Activation > 1 && raw > 0 {
			pods = max(pods, spec.Activation)
		}
		return raw, pods
	}
	_, byStable := bound(stable)
	raw, byPanic := bound(panicked)
	return wish{byStable, byPanic, raw/ready >= spec.PanicThreshold}
}

// panicOr starts, prolongs or ends a panic, and returns the pods that follow.
func (s *State) panicOr(spec *Spec, seen Seen, w wish, now time.Time) int32 {
	switch {
	case w.over:
		s.panicking, s.panicSince = true, now
	case s.panicking && s.panicSince.Add(spec.StableWindow).Before(now):
		s.panicking, s.panicSince, s.panicPods = false, time.Time{}, 0
	}
	if !s.panicking {
		return w.stable
	}
	s.panicPods = max(s.panicPods, w.stable, w.panic)
	return s.panicPods
}

// delay holds the number at the highest of the delay window.
func (s *State) delay(spec *Spec, pods int32, now time.Time) int32 {
	if spec.DownDelay <= 0 || !spec.Reachable {
		return pods
	}
	size := int64(math.Ceil(float64(spec.DownDelay) / float64(Tick)))
	return s.peaks.add(now.Unix()/int64(Tick/time.Second), size, pods)
}

// trusted is when a full stable window has been observed, so that a smaller
// number is knowledge and not ignorance.
func (s *State) trusted(spec *Spec, seen Seen) time.Time {
	if seen.CoveredSince.IsZero() {
		return s.born.Add(spec.StableWindow)
	}
	if s.adopted || seen.CoveredSince.After(s.born) {
		return seen.CoveredSince.Add(spec.StableWindow)
	}
	return time.Time{}
}

// excess is what the ready pods can take beyond the present load and the
// burst that is to be expected. It looks at the panic window: whether the
// activator must be in the path shall not hang on a moment.
func excess(spec *Spec, ready int32, load float64) int32 {
	switch {
	case spec.BurstCapacity == 0:
		return 0
	case spec.BurstCapacity > 0:
		return whole(math.Floor(float64(ready)*spec.Total - spec.BurstCapacity - load))
	default:
		return -1
	}
}

func activators(spec *Spec, ready int32) int32 {
	if spec.BurstCapacity == 0 || spec.ActivatorCapacity <= 0 {
		return minActivators
	}
	need := float64(ready)*spec.Total + max(0, spec.BurstCapacity)
	return whole(max(minActivators, math.Ceil(need/spec.ActivatorCapacity)))
}

// whole cuts a count to what an int32 holds.
func whole(count float64) int32 {
	return int32(min(max(count, math.MinInt32), math.MaxInt32))
}

// earliest is the first of several times.
type earliest struct{ at time.Time }

func (e *earliest) by(t time.Time) {
	if e.at.IsZero() || t.Before(e.at) {
		e.at = t
	}
}
