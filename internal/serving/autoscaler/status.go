// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"time"

	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"

	"github.com/sonagi/sonagi/internal/serving/scale"
)

// The reasons of the Active condition, as clients of Knative know them.
const (
	unsaid = ""

	reasonQueued    = "Queued"
	messageQueued   = "Requests to the target are being buffered as resources are provisioned."
	reasonNoTraffic = "NoTraffic"
	messageIdle     = "The target is not receiving traffic."
	reasonTimedOut  = "TimedOut"
	messageTimedOut = "The target could not be activated."
	reasonActive    = "Active" // not written: a condition that holds has no reason
)

// facts are what a status says, without when it came to be.
type facts struct {
	generation      int64
	desired, actual int32
	phase           scale.Phase
	reason          string
	initialized     bool
	services        bool // the names of the services are there
}

func factsOf(s *autoscalingv1alpha1.PodAutoscalerStatus) facts {
	f := facts{
		generation:  s.ObservedGeneration,
		desired:     s.GetDesiredScale(),
		actual:      s.GetActualScale(),
		initialized: s.IsScaleTargetInitialized(),
		services:    s.ServiceName != "" && s.MetricsServiceName != "" && s.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionSKSReady).IsTrue(),
	}
	switch c := s.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive); {
	case c.IsTrue():
		f.phase, f.reason = scale.Active, reasonActive
	case c.IsFalse():
		f.phase, f.reason = scale.Inactive, c.Reason
	case c != nil:
		f.phase, f.reason = scale.Activating, c.Reason
	}
	return f
}

func scaleReason(reason string) scale.Reason {
	switch reason {
	case reasonQueued:
		return scale.Queued
	case reasonNoTraffic:
		return scale.NoTraffic
	case reasonTimedOut:
		return scale.TimedOut
	default:
		return scale.NoReason
	}
}

// reflect brings the status in line with a decision, and has it written.
func (a *Autoscaler) reflect(r *revision, d scale.Decision, now time.Time) {
	f := facts{
		generation: r.pa.Generation, desired: d.Desired, actual: r.target.ready, phase: d.Phase,
		initialized: d.Initialized || r.known.initialized, services: true,
	}
	if f.desired == scale.Unknown {
		// What was wanted stays true until there is a new wish.
		f.desired = r.facts.desired
	}
	s := &r.status
	switch d.Phase {
	case scale.Active:
		f.reason = reasonActive
		s.MarkActive()
	case scale.Activating:
		f.reason = reasonQueued
		s.MarkActivating(reasonQueued, messageQueued)
	case scale.Inactive:
		message := messageIdle
		if f.reason = reasonNoTraffic; d.Reason == scale.TimedOut {
			f.reason, message = reasonTimedOut, messageTimedOut
		}
		s.MarkInactive(f.reason, message)
	}
	if f == r.facts {
		return
	}
	r.facts = f
	s.MarkSKSReady()
	if f.initialized {
		s.MarkScaleTargetInitialized()
	}
	s.ObservedGeneration = f.generation
	s.DesiredScale, s.ActualScale = &f.desired, &f.actual
	s.ServiceName, s.MetricsServiceName = r.name.Name, r.name.Name+"-private"
	a.report(r, now)
}

// report sees to it that the status will be written, if there is news.
func (a *Autoscaler) report(r *revision, now time.Time) {
	switch {
	case r.facts == r.known:
		r.flush = time.Time{}
	case r.inStatuses:
		// That one will see to it.
	case !r.known.initialized:
		// Somebody waits for a new revision to be ready, or to fail.
		a.push(&a.statuses, r)
	default:
		r.flush = soonest(r.flush, now.Add(r.patience()))
	}
}

// patience is how long news may wait to be written.
func (r *revision) patience() time.Duration {
	if r.facts.phase == scale.Activating {
		return wakingDelay
	}
	return statusDelay
}
