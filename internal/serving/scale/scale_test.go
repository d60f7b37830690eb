// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"math"
	"testing"
	"time"
	"unsafe"
)

var dawn = time.Unix(1_700_000_000, 0)

// knative is a spec with the defaults of config-autoscaler.
func knative(change func(*Spec)) *Spec {
	s := &Spec{
		Target: 70, Total: 100, StableWindow: time.Minute, PanicWindow: 6 * time.Second, PanicThreshold: 2,
		MaxUpRate: 1000, MaxDownRate: 2, BurstCapacity: 211, ActivatorCapacity: 100, Initial: 1,
		Reachable: true, ToZero: true, Grace: 30 * time.Second, ActivationTimeout: 630 * time.Second,
	}
	if change != nil {
		change(s)
	}
	return s
}

// play runs one revision: the data plane reports each second, pods follow
// what is asked for after a second, decisions come when they asked to come.
type play struct {
	t        *testing.T
	spec     *Spec
	state    State
	now      time.Time
	since    time.Time
	again    time.Time
	ready    int32
	replicas int32
	last     Decision
	decided  int
	stuck    bool // pods never become ready
	silent   bool // the data plane does not report
}

func begin(t *testing.T, spec *Spec, replicas int32) *play {
	p := &play{t: t, spec: spec, now: dawn, since: dawn, replicas: replicas}
	p.decide(0)
	return p
}

func (p *play) decide(surge float64) {
	for range 4 {
		covered := p.now
		if p.silent {
			covered = p.since
		}
		p.last = Decide(p.spec, Seen{p.ready, p.replicas, surge, p.since, covered}, &p.state, p.now)
		p.decided++
		if p.again = p.last.Again; !p.again.IsZero() && !p.again.After(p.now) {
			p.t.Fatalf("it wants to decide again at once at %v: %+v", p.now.Sub(dawn), p.last)
		}
		if !p.last.Write {
			return
		}
		p.replicas = p.last.Replicas
	}
	p.t.Fatalf("it writes and writes at %v: %+v", p.now.Sub(dawn), p.last)
}

// run lets time pass under a load.
func (p *play) run(d time.Duration, load float64) {
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(time.Second)
		if ready := p.replicas; !p.stuck && ready != p.ready {
			p.ready = ready
			p.decide(0)
		}
		if load > 0 && !p.silent {
			quiet := p.state.Quiet()
			if quiet && p.replicas == 0 {
				p.decide(1)
			}
			p.state.Record(p.spec, p.now, time.Second, load, load*10)
			if quiet {
				p.decide(0)
			}
		}
		if !p.again.IsZero() && !p.again.After(p.now) {
			p.decide(0)
		}
	}
}

func (p *play) want(what string, replicas int32, phase Phase, reason Reason) {
	p.t.Helper()
	if p.replicas != replicas || p.last.Phase != phase || p.last.Reason != reason {
		p.t.Errorf("%s: %d replicas, phase %d, reason %d; want %d, %d, %d", what, p.replicas, p.last.Phase, p.last.Reason, replicas, phase, reason)
	}
}

func TestFromOneToZeroAndBack(t *testing.T) {
	p := begin(t, knative(nil), 1)
	p.want("created", 1, Activating, Queued)
	if p.last.Desired != Unknown || p.last.Initialized {
		t.Errorf("created: %+v", p.last)
	}
	p.run(2*time.Second, 0)
	p.want("ready", 1, Active, NoReason)
	if !p.last.Initialized {
		t.Error("ready, but not initialized")
	}
	p.run(57*time.Second, 0)
	p.want("before the window", 1, Active, NoReason)
	p.run(5*time.Second, 0)
	p.want("after the window", 0, Inactive, NoTraffic)
	p.run(time.Second, 0)

	was := p.decided
	p.run(time.Hour, 0)
	if p.decided != was || !p.again.IsZero() {
		t.Errorf("at zero it was decided upon %d times", p.decided-was)
	}
	p.decide(1)
	p.want("poked", 1, Activating, Queued)
	if p.last.Desired != 1 {
		t.Errorf("poked: desired %d", p.last.Desired)
	}
	p.run(10*time.Second, 5)
	p.want("running", 1, Active, NoReason)
	p.run(55*time.Second, 0)
	p.want("window after load", 1, Active, NoReason)
	p.run(20*time.Second, 0)
	p.want("idle again", 0, Inactive, NoTraffic)
}

func TestGraceAndRetention(t *testing.T) {
	// With no burst capacity, requests go straight to the pods: then the
	// grace period begins when there is no more load.
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		after  time.Duration // from the end of the load
	}{
		{"proxied all the time", nil, 60 * time.Second},
		{"served directly", func(s *Spec) { s.BurstCapacity = 0 }, 90 * time.Second},
		{"retention", func(s *Spec) { s.Retention = 45 * time.Second }, 105 * time.Second},
		{"retention of nobody's revision", func(s *Spec) { s.Retention = 45 * time.Second; s.Reachable = false }, 60 * time.Second},
		{"short window", func(s *Spec) { s.StableWindow = 6 * time.Second; s.PanicWindow = time.Second }, 6 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := begin(t, knative(tt.change), 1)
			p.run(70*time.Second, 1)
			p.run(tt.after-3*time.Second, 0)
			if p.replicas != 1 {
				t.Errorf("at zero before %v", tt.after)
			}
			p.run(7*time.Second, 0)
			p.want("after", 0, Inactive, NoTraffic)
		})
	}
}

func TestKeepsPods(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   int32
	}{
		{"min scale", func(s *Spec) { s.Min = 3 }, 3},
		{"scale to zero disabled", func(s *Spec) { s.ToZero = false }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := begin(t, knative(tt.change), 1)
			p.run(5*time.Minute, 0)
			p.want("idle", tt.want, Active, NoReason)
			if !p.again.IsZero() {
				t.Errorf("idle, but decides again after %v", p.again.Sub(p.now))
			}
			p.run(8*time.Second, 700)
			if p.replicas < 10 {
				t.Errorf("under load: %d replicas", p.replicas)
			}
			p.run(5*time.Minute, 0)
			p.want("idle again", tt.want, Active, NoReason)
		})
	}
}

func TestInitialScale(t *testing.T) {
	p := begin(t, knative(func(s *Spec) { s.Initial = 4 }), 4)
	p.stuck = true
	p.ready = 3
	p.run(5*time.Second, 0)
	p.want("not all ready", 4, Activating, Queued)
	p.stuck = false
	p.run(3*time.Second, 0)
	// It has been attained once: now the load decides, by halves.
	p.want("attained", 1, Active, NoReason)

	p = begin(t, knative(func(s *Spec) { s.Initial = 0 }), 0)
	p.want("initial zero", 0, Inactive, NoTraffic)
	if !p.last.Initialized {
		t.Error("initial zero, but not initialized")
	}
	p.decide(1)
	p.want("poked", 1, Activating, Queued)
}

func TestNeverReady(t *testing.T) {
	p := begin(t, knative(nil), 1)
	p.stuck = true
	p.run(629*time.Second, 0)
	p.want("deadline", 1, Activating, Queued)
	p.run(4*time.Second, 0)
	p.want("given up", 0, Inactive, TimedOut)
	p.run(time.Minute, 0)
	p.want("still", 0, Inactive, TimedOut)
	p.decide(1)
	p.want("poked", 1, Activating, Queued)
	p.run(5*time.Second, 3)
	p.run(2000*time.Second, 0)
	p.want("given up again", 0, Inactive, TimedOut)

	p.state = Adopt(Inactive, NoTraffic, dawn, true, 0, p.now)
	p.replicas = 0
	p.decide(1)
	p.run(2000*time.Second, 0)
	p.want("a lone poke", 0, Inactive, TimedOut)

	p = begin(t, knative(func(s *Spec) { s.Min = 2 }), 2)
	p.stuck = true
	p.run(time.Hour, 0)
	p.want("min scale holds", 2, Activating, Queued)
}

func TestSurge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		surge  float64
		want   int32
	}{
		{"first request", nil, 1, 1},
		{"burst", func(s *Spec) { s.Target, s.Total = 7, 10 }, 200, 29},
		{"burst to the limit", func(s *Spec) { s.Target, s.Total, s.Max = 7, 10, 20 }, 200, 20},
		{"activation scale", func(s *Spec) { s.Activation = 3 }, 1, 3},
		{"limited rate", func(s *Spec) { s.Target, s.Total, s.MaxUpRate = 1, 1, 10 }, 200, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := knative(tt.change)
			p := &play{t: t, spec: spec, now: dawn, since: dawn}
			p.state = Adopt(Inactive, NoTraffic, dawn.Add(-time.Hour), true, 0, dawn)
			p.decide(tt.surge)
			p.want("surge", tt.want, Activating, Queued)
		})
	}
}

func TestBurstFromZero(t *testing.T) {
	// 200 requests at once where a pod takes 10: the first report counts in
	// full, it is not thinned by the hours before.
	p := begin(t, knative(func(s *Spec) { s.Target, s.Total, s.Max = 7, 10, 20 }), 1)
	p.run(2*time.Minute, 0)
	p.run(time.Hour, 0)
	p.want("zero", 0, Inactive, NoTraffic)
	p.run(4*time.Second, 200)
	p.want("burst", 20, Active, NoReason)
	if !p.last.Panicking {
		t.Error("a burst is no panic")
	}
	p.run(30*time.Second, 10)
	p.want("panic only rises", 20, Active, NoReason)
	p.run(2*time.Minute, 10)
	p.want("after the panic", 2, Active, NoReason)
}

func TestAfterRestart(t *testing.T) {
	for _, load := range []float64{0, 450} {
		p := &play{t: t, spec: knative(nil), now: dawn, since: dawn, ready: 8, replicas: 8}
		p.state = Adopt(Active, NoReason, dawn.Add(-time.Hour), true, 8, dawn)
		p.decide(0)
		p.want("adopted", 8, Active, NoReason)
		p.run(55*time.Second, load)
		p.want("before a window was seen", 8, Active, NoReason)
		p.run(20*time.Second, load)
		want := int32(math.Ceil(load / 70))
		if want == 0 && p.replicas >= 8 || want > 0 && p.replicas != want {
			t.Errorf("after a window with load %v: %d replicas", load, p.replicas)
		}
	}
}

func TestNoReports(t *testing.T) {
	p := begin(t, knative(nil), 1)
	p.run(30*time.Second, 3)
	p.silent, p.since = true, p.now
	p.run(10*time.Minute, 0)
	p.want("nothing is known", 1, Active, NoReason)
	p.silent, p.since = false, p.now
	p.run(57*time.Second, 0)
	p.want("not yet a window", 1, Active, NoReason)
	p.run(20*time.Second, 0)
	p.want("a window", 0, Inactive, NoTraffic)
}

func TestDownDelay(t *testing.T) {
	p := begin(t, knative(func(s *Spec) {
		s.DownDelay = 3 * time.Minute
		s.Target, s.StableWindow, s.PanicWindow = 10, 6*time.Second, time.Second
	}), 1)
	p.run(20*time.Second, 50)
	p.want("load", 5, Active, NoReason)
	p.run(170*time.Second, 0)
	p.want("delayed", 5, Active, NoReason)
	// It was reduced to half: as often as the rate allows in one step.
	p.run(30*time.Second, 0)
	p.want("after the delay", 2, Active, NoReason)
	p.run(600*time.Second, 0)
	p.want("in the end", 0, Inactive, NoTraffic)
}

func TestModeAndActivators(t *testing.T) {
	p := begin(t, knative(func(s *Spec) { s.BurstCapacity = 150 }), 1)
	p.run(10*time.Second, 10)
	if d := p.last; d.Mode != Proxy || d.ExcessBurst != 100-150-10 || d.Activators != 3 {
		t.Errorf("one pod: %+v", d)
	}
	p.run(70*time.Second, 140)
	if d := p.last; p.replicas != 2 || d.Mode != Proxy || d.ExcessBurst != 200-150-140 {
		t.Errorf("two pods: %+v", d)
	}
	p.spec.Min = 4
	p.run(10*time.Second, 140)
	if d := p.last; p.replicas != 4 || d.Mode != Serve || d.ExcessBurst != 400-150-140 || d.Activators != 6 {
		t.Errorf("four pods: %+v", d)
	}
}

func TestRPS(t *testing.T) {
	p := begin(t, knative(func(s *Spec) { s.Metric, s.Target, s.Total = RPS, 140, 200 }), 1)
	p.run(90*time.Second, 30) // 300 requests a second
	p.want("300 rps", 3, Active, NoReason)
}

func TestNobodysRevision(t *testing.T) {
	p := begin(t, knative(func(s *Spec) { s.Min = 0; s.Reachable = false; s.DownDelay = time.Hour; s.Retention = time.Hour }), 1)
	p.run(62*time.Second, 0)
	p.run(3*time.Second, 0)
	p.want("unreachable", 0, Inactive, NoTraffic)
}

func TestResize(t *testing.T) {
	p := begin(t, knative(nil), 1)
	p.run(61*time.Second, 7)
	p.spec = knative(func(s *Spec) { s.StableWindow = 20 * time.Second; s.PanicWindow = 2 * time.Second })
	p.decide(0)
	if p.last.Stable != 7 || p.last.Panic != 7 {
		t.Errorf("shorter: %+v", p.last)
	}
	p.spec = knative(func(s *Spec) { s.StableWindow = 5 * time.Minute })
	p.decide(0)
	if p.last.Stable != 7 {
		t.Errorf("longer: %+v", p.last)
	}
}

func TestLongAndShortSpans(t *testing.T) {
	var s State
	spec := knative(nil)
	s.Record(spec, dawn, time.Second, 6, 0)
	s.Record(spec, dawn.Add(5*time.Second), 5*time.Second, 6, 0)
	if got, _ := s.load.average(spec, dawn.Unix()+5); got != 6 {
		t.Errorf("a late report leaves a gap: %v", got)
	}
	s.Record(spec, dawn.Add(6*time.Second), 250*time.Millisecond, 6, 0)
	if got, _ := s.load.average(spec, dawn.Unix()+6); got != math.Round(37.5/7*1e6)/1e6 {
		t.Errorf("a short report counts as a long one: %v", got)
	}
	s.Record(spec, dawn.Add(time.Hour), time.Hour, 6, 0)
	if got, _ := s.load.average(spec, dawn.Unix()+3600); got != 6 {
		t.Errorf("an hour: %v", got)
	}
}

// TestIdleIsSmall: an idle revision must not cost more than its state.
func TestIdleIsSmall(t *testing.T) {
	p := begin(t, knative(nil), 1)
	p.run(time.Minute, 10)
	p.run(2*time.Minute, 0)
	if p.state.load.buckets != nil || cap(p.state.peaks.kept) > 0 {
		t.Error("an idle revision keeps its history")
	}
	if size := unsafe.Sizeof(p.state); size > 320 {
		t.Errorf("a state has %d bytes", size)
	}
}

func FuzzDecide(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200, 5, 6, 7, 8, 9, 10, 11, 12}, uint8(0), uint8(3), int16(211))
	f.Fuzz(func(t *testing.T, story []byte, least, most uint8, burst int16) {
		spec := knative(func(s *Spec) {
			s.Min, s.Max, s.BurstCapacity = int32(least), int32(most), float64(max(-1, burst))
			s.StableWindow, s.PanicWindow = 6*time.Second+time.Duration(least)*time.Second, time.Second
			s.DownDelay = time.Duration(most/64) * time.Minute
		})
		if spec.Max != 0 && spec.Max < spec.Min {
			return
		}
		var s State
		now, since := dawn, dawn
		seen := Seen{Replicas: 1, CoveredSince: since, Covered: now}
		for i, b := range story {
			now = now.Add(time.Duration(b%64) * 300 * time.Millisecond)
			switch b / 64 {
			case 1:
				s.Record(spec, now, time.Second, float64(b), float64(i))
			case 2:
				seen.Ready = seen.Replicas
			case 3:
				seen.Surge = float64(b % 8)
			}
			seen.Covered = now
			for n := 0; ; n++ {
				d := Decide(spec, seen, &s, now)
				if d.Desired < Unknown || d.Write && (d.Replicas < spec.Min || spec.Max > 0 && d.Replicas > spec.Max) {
					t.Fatalf("out of bounds: %+v", d)
				}
				if d.Write {
					seen.Replicas = d.Replicas
				}
				seen.Surge = 0
				if !d.Again.IsZero() && !d.Again.After(now) {
					t.Fatalf("does not settle: %+v", d)
				}
				if !d.Write {
					break
				}
				if n > 4 {
					t.Fatalf("writes and writes: %+v", d)
				}
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	spec := knative(nil)
	var s State
	now := dawn
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Second)
		s.Record(spec, now, time.Second, 50, 100)
		Decide(spec, Seen{Ready: 1, Replicas: 1, CoveredSince: dawn, Covered: now}, &s, now)
	}
}
