// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ProbeKind is what a probe decides.
type ProbeKind string

// The kinds.
const (
	Readiness ProbeKind = "Readiness"
	Liveness  ProbeKind = "Liveness"
	Startup   ProbeKind = "Startup"
)

// ProbeOf is the container's probe of that kind, or nil.
func ProbeOf(c *corev1.Container, kind ProbeKind) *corev1.Probe {
	switch kind {
	case Readiness:
		return c.ReadinessProbe
	case Liveness:
		return c.LivenessProbe
	default:
		return c.StartupProbe
	}
}

// Verdicts of a probe over its tries.
type ProbeResult int

// The results. A probe that has not decided yet is Undecided.
const (
	Undecided ProbeResult = iota
	Passed
	Failed
)

// A Prober is the memory of one probe of one running container.
//
// A container that has just started is asked at once and then again after
// moments that grow by a fifth: it is found ready soon after it is, whether
// that takes 5 ms or 5 min. These early tries may pass, but fail only once a
// period, so that thresholds mean what they say.
type Prober struct {
	Kind   ProbeKind
	Result ProbeResult

	from     time.Time // when it is first asked
	last     time.Time // when it was last asked; zero: never
	tries    int       // since from, while early
	run      int       // counted answers of the same kind in a row
	lastOK   bool
	counted  int // periods over which failures were counted while early
	early    bool
	period   time.Duration
	success  int
	failure  int
	earliest time.Duration
}

// How soon a container is asked again right after its start. Asking by exec
// starts a process, so it is done less often.
const (
	firstRetry     = 500 * time.Microsecond
	firstExecRetry = 40 * time.Millisecond
	retryGrowth    = 1.2
)

// NewProber begins asking a container that started at that time.
func NewProber(kind ProbeKind, spec *corev1.Probe, started time.Time) Prober {
	p := Prober{
		Kind:     kind,
		from:     started.Add(time.Duration(spec.InitialDelaySeconds) * time.Second),
		period:   seconds(spec.PeriodSeconds, 10),
		success:  int(max(1, spec.SuccessThreshold)),
		failure:  int(spec.FailureThreshold),
		early:    kind != Liveness && spec.SuccessThreshold <= 1,
		earliest: firstRetry,
	}
	if p.failure == 0 {
		p.failure = 3
	}
	if spec.Exec != nil {
		p.earliest = firstExecRetry
	}
	return p
}

// Adopted is the probe of a container that an earlier process watched, with
// what it had found. It is asked in peace.
func (p Prober) Adopted(result ProbeResult) Prober {
	p.Result, p.early = result, result == Undecided && p.early
	return p
}

func seconds(n, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// Due is when to ask next. crowd is how many containers are being waited for:
// the more there are, the less often each is asked, so that the asking does
// not keep them from starting.
func (p Prober) Due(crowd int) time.Time {
	if p.last.IsZero() {
		return p.from
	}
	if !p.early {
		return p.last.Add(p.period)
	}
	wait := float64(p.earliest)
	for range p.tries {
		wait *= retryGrowth
		if time.Duration(wait) > p.period {
			return p.last.Add(p.period)
		}
	}
	if crowd > 4 {
		wait *= float64(crowd) / 4
	}
	return p.last.Add(min(time.Duration(wait), p.period))
}

// Answer notes what asking at that time found. counts tells whether it weighs:
// an early failure that does not is nobody's concern.
func (p Prober) Answer(ok bool, at time.Time) (next Prober, counts bool) {
	p.last = at
	p.tries++
	weight := 1
	if p.early && !ok {
		periods := int(at.Sub(p.from) / p.period)
		weight = periods - p.counted
		p.counted = periods
		if weight == 0 {
			return p, false
		}
	}
	if ok {
		p.early = false
	}
	if ok != p.lastOK {
		p.run = 0
	}
	p.lastOK = ok
	p.run += weight
	switch {
	case ok && p.run >= p.success:
		p.Result = Passed
	case !ok && p.run >= p.failure:
		p.Result = Failed
	}
	return p, true
}

// Postpone notes that asking at that time found nothing out.
func (p Prober) Postpone(at time.Time) Prober {
	p.last = at
	p.tries++
	return p
}
