// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"

	"github.com/sonagi/sonagi/internal/serving/load"
	"github.com/sonagi/sonagi/internal/serving/scale"
)

// revision is what the autoscaler knows of one revision. All of it is guarded
// by Autoscaler.mu.
type revision struct {
	name   load.Revision
	pa     *autoscalingv1alpha1.PodAutoscaler // the informer's: not to be changed
	target *target
	spec   scale.Spec
	state  scale.State
	said   scale.Decision // last, for the metrics

	// cold is until when waiting requests are counted one by one, because
	// there were no pods when they came. Until a report, surge is their load.
	cold  time.Time
	surge float64

	again time.Time // when to decide again
	flush time.Time // when to write the status
	next  time.Time // the sooner of these
	place int       // on the agenda, from 1

	want    int32 // replicas to write, if wanting
	wanting bool
	wrote   written
	fails   int

	status       autoscalingv1alpha1.PodAutoscalerStatus
	facts, known facts // what the status should say, and what it says
	statusFails  int

	inScales, inStatuses bool // with a worker, or in its queue
}

// target is a Deployment as last seen. There may be one without a revision,
// and a revision before there is one.
type target struct {
	key             types.NamespacedName
	exists          bool
	version         uint64
	replicas, ready int32
	of              *revision
}

// written is a replica count, and the version of the Deployment it made.
type written struct {
	replicas int32
	version  uint64
}

// replicas returns how many pods were last asked for, as far as is known:
// what is being written, or was written after what was seen.
func (r *revision) replicas() int32 {
	switch {
	case !r.target.exists:
		return scale.Unknown
	case r.wanting:
		return r.want
	case r.wrote.version >= r.target.version:
		return r.wrote.replicas
	default:
		return r.target.replicas
	}
}

// decide asks scale about a revision, and sees to what follows.
func (a *Autoscaler) decide(r *revision, now time.Time) {
	had, surge := r.replicas(), r.surge
	if !now.Before(r.cold) {
		surge = 0
	}
	d := scale.Decide(&r.spec, scale.Seen{
		Ready: r.target.ready, Replicas: had, Surge: surge,
		CoveredSince: a.coveredSince, Covered: a.covered,
	}, &r.state, now)
	r.again, r.said = d.Again, d
	if d.Write {
		r.want, r.wanting = d.Replicas, true
		a.push(&a.scales, r)
		a.log.Debug("scaling", "revision", r.name, "from", had, "to", d.Replicas,
			"stable", d.Stable, "panic", d.Panic, "panicking", d.Panicking)
	}
	a.reflect(r, d, now)
	a.plan(r)
}

// adopt begins with a revision as its status says it is.
func (a *Autoscaler) adopt(name load.Revision, pa *autoscalingv1alpha1.PodAutoscaler, to *target, now time.Time) *revision {
	r := &revision{name: name, target: to, status: *pa.Status.DeepCopy()}
	r.known = factsOf(&r.status)
	r.facts = r.known
	r.status.InitializeConditions()
	if r.known.reason != unsaid {
		active := r.status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive)
		r.state = scale.Adopt(r.known.phase, scaleReason(r.known.reason), active.LastTransitionTime.Inner.Time,
			r.known.initialized, to.ready, now)
	}
	a.revisions[name] = r
	return r
}

func (a *Autoscaler) drop(r *revision) {
	a.agenda.drop(r)
	delete(a.revisions, r.name)
	if r.target.of == r {
		r.target.of = nil
		a.tidy(r.target)
	}
}

// aim makes a Deployment the target of a revision.
func (a *Autoscaler) aim(r *revision, to *target) {
	if was := r.target; was != nil && was != to && was.of == r {
		was.of = nil
		a.tidy(was)
	}
	r.target, to.of = to, r
}

// targetAt returns the target with this key.
func (a *Autoscaler) targetAt(key types.NamespacedName) *target {
	t := a.targets[key]
	if t == nil {
		t = &target{key: key}
		a.targets[key] = t
	}
	return t
}

// tidy forgets a target that neither exists nor is wanted.
func (a *Autoscaler) tidy(t *target) {
	if !t.exists && t.of == nil {
		delete(a.targets, t.key)
	}
}
