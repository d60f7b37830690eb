// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/volume"
)

// A worker makes one pod so. Its loop is the only one that decides; what takes
// time is done beside it, and wakes it when done.
type worker struct {
	a      *Agent
	uid    types.UID
	first  *corev1.Pod   // as it was seen first: name and requests do not change
	claims atomic.Bool   // it takes room on this machine
	wake   chan struct{} // something changed

	ctx    context.Context // of all that is done for the pod; ends with the agent
	starts context.Context // of what brings the pod up; ends when the pod has to end
	halt   context.CancelCauseFunc

	after <-chan struct{} // the end of an earlier pod of the same name
	done  chan struct{}   // nothing of the pod is left

	mu         sync.Mutex
	pod        *corev1.Pod // as the API has it
	deleted    bool        // the API has it no more
	containers map[string]*member
	admitted   bool
	startTime  time.Time
	verdict    *pod.Verdict

	sandbox *future[network.Sandbox]
	placed  *future[*volume.Pod] // volumes have their places
	filled  *future[time.Time]   // and their content
	refill  bool                 // an object of a volume has changed
	refresh time.Time            // when to fill again for a token's sake
	kept    bool                 // the objects of volumes are watched
	limit   sync.Once            // the pod's own control group is bounded

	ending   bool      // the pod has to end
	over     bool      // all containers have ended for good
	killBy   time.Time // when the grace period of the whole pod ends
	hurry    chan struct{}
	cleaning bool
	cleaned  bool // only the logs and the API object are left

	status    *corev1.PodStatus // told, or being told
	sender    sender
	announced *PodEndpoint
}

// A member is one container of the pod, with what is under way for it.
type member struct {
	pod.Container
	pod.Member
	backoff pod.Backoff
	grieved int           // failed starts in a row
	flipAt  time.Time     // when "failed to pull" becomes "will pull later"
	told    time.Time     // the end whose back-off was told of
	exited  chan struct{} // closed at the end of the newest attempt
	hooking bool          // its postStart hook runs
	probes  context.CancelFunc
	logPath string
}

// errEnding is why starts are broken off when their pod has to end.
var errEnding = errors.New("pod is ending")

func (a *Agent) newWorker(p *corev1.Pod, after <-chan struct{}) *worker {
	w := &worker{
		a: a, uid: p.UID, first: p, wake: make(chan struct{}, 1), ctx: a.ctx,
		after: after, done: make(chan struct{}), hurry: make(chan struct{}),
		pod: p, containers: map[string]*member{},
	}
	w.starts, w.halt = context.WithCancelCause(a.ctx)
	w.sender.init(w)
	w.claims.Store(!pod.Terminal(p.Status.Phase))
	return w
}

// poke makes the worker look again.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// observe takes the pod as the API has it now; gone: it has it no more.
func (w *worker) observe(p *corev1.Pod, gone bool) {
	w.mu.Lock()
	if fieldsChanged(w.pod, p) {
		w.refill = true
	}
	w.pod = p
	w.deleted = w.deleted || gone
	w.mu.Unlock()
	w.poke()
}

// run is the loop of the worker. It returns when nothing of the pod is left,
// or when the agent ends.
func (w *worker) run() {
	defer w.halt(errEnding)
	if w.after != nil {
		select {
		case <-w.after:
		case <-w.ctx.Done():
			return
		}
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, finished := w.sync()
		if finished {
			close(w.done)
			return
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(next.Sub(w.a.now()))
		}
		select {
		case <-w.wake:
		case <-timer.C:
		case <-w.ctx.Done():
			return
		}
	}
}

// sync compares what should be with what is and begins what has to be done. It
// never waits. It returns when to look again without being woken.
func (w *worker) sync() (next time.Time, finished bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.a.now()
	w.members()
	w.judge(now)
	if w.ending {
		w.announce() // no more requests for it, before those under way are waited for
		w.end(now)
	} else {
		next = w.bringUp(now)
	}
	w.announce()
	w.report(now)
	next = earliest(next, w.wakeTimes(now)...)
	return next, w.cleaned && w.sender.removed
}

// members gives every container of the spec its place.
func (w *worker) members() {
	for _, m := range pod.Members(w.pod) {
		have := w.containers[m.Spec.Name]
		if have == nil {
			have = &member{}
			w.containers[m.Spec.Name] = have
		}
		have.Member = m
		if have.Phase == pod.Running && !have.Busy && have.Image != m.Spec.Image && have.Image != "" && have.Sick == pod.Well {
			have.Sick = pod.DefinitionChange
		}
	}
}

// judge finds reasons to end the pod.
func (w *worker) judge(now time.Time) {
	p := w.pod
	switch {
	case w.deleted || p.DeletionTimestamp != nil:
		w.ending = true
	case w.ending:
		return
	case pod.Terminal(p.Status.Phase) || w.status != nil && pod.Terminal(w.status.Phase):
		w.ending = true
	case !w.admitted:
		w.admit(now)
	}
	if at := w.deadline(); w.verdict == nil && !at.IsZero() && !now.Before(at) && !w.ending {
		w.verdict = &pod.Verdict{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
		w.a.note(p, nil, w.verdict.Reason, "%s", w.verdict.Message)
	}
	if w.verdict != nil {
		w.ending = true
	}
	if w.verdict != nil || w.over {
		w.claims.Store(false)
	}
	if w.ending {
		w.halt(errEnding)
	}
}

// deadline is when the pod has been active for long enough.
func (w *worker) deadline() time.Time {
	if w.pod.Spec.ActiveDeadlineSeconds == nil || w.startTime.IsZero() {
		return time.Time{}
	}
	return w.startTime.Add(time.Duration(*w.pod.Spec.ActiveDeadlineSeconds) * time.Second)
}

// admit turns a pod away that this machine has no room for. A pod that has
// run here is not asked again.
func (w *worker) admit(now time.Time) {
	w.admitted = true
	w.startTime = now
	if w.pod.Status.StartTime != nil {
		w.startTime = w.pod.Status.StartTime.Time
		return
	}
	v := pod.Admit(w.pod, w.a.others(w.uid), w.a.machine.allocatable())
	if v == nil {
		return
	}
	w.a.warn(w.pod, nil, v.Reason, "%s", v.Message)
	v.Message = "Pod was rejected: " + v.Message
	w.verdict = v
}

// bringUp begins what is missing of a pod that should run.
func (w *worker) bringUp(now time.Time) time.Time {
	w.prepare()
	w.refillVolumes(now)
	d := pod.Next(w.pod, w.seen(), now)
	for _, k := range d.Kill {
		w.stop(w.containers[k.Name], k)
	}
	var before *future[struct{}]
	for _, name := range d.Start {
		before = w.start(w.containers[name], before, now)
	}
	for _, name := range d.Waiting {
		w.wait(w.containers[name], now)
	}
	if d.Finished {
		w.over, w.ending = true, true
		w.halt(errEnding)
		w.end(now)
	}
	return d.Wake
}

// prepare begins the sandbox and the volumes.
func (w *worker) prepare() {
	p := w.pod
	if w.sandbox == nil {
		w.sandbox = begin(func() (network.Sandbox, error) { return w.acquire(w.starts, p) })
	}
	if w.placed == nil {
		w.placed = begin(func() (*volume.Pod, error) { return w.place(w.starts, p) })
		w.filled = begin(func() (time.Time, error) {
			v, err := w.placed.wait(w.starts)
			if err != nil {
				return time.Time{}, err
			}
			return w.fill(w.starts, p, v)
		})
	}
}

// seen is what the containers are like.
func (w *worker) seen() map[string]pod.Container {
	out := make(map[string]pod.Container, len(w.containers))
	for name, m := range w.containers {
		out[name] = m.Container
	}
	return out
}

// wait says why a container that should run is not started yet.
func (w *worker) wait(m *member, now time.Time) {
	if m.Phase == pod.Exited && m.grieved == 0 {
		m.Waiting = pod.CrashLoop(w.pod, m.Spec.Name, m.backoff.Delay)
		if !m.told.Equal(m.FinishedAt) {
			m.told = m.FinishedAt
			w.a.warn(w.pod, &m.Member, "BackOff", "Back-off restarting failed container %s in pod %s", m.Spec.Name, pod.FullName(w.pod))
		}
		return
	}
	if !m.flipAt.IsZero() && !now.Before(m.flipAt) {
		m.flipAt = time.Time{}
		m.Waiting = pullBackOff(m)
		w.a.note(w.pod, &m.Member, "BackOff", "Back-off pulling image %q", m.Spec.Image)
		w.a.warn(w.pod, &m.Member, "Failed", "Error: %s", m.Waiting.Reason)
	}
}

// wakeTimes are the times at which something is due.
func (w *worker) wakeTimes(now time.Time) []time.Time {
	if w.ending {
		return nil
	}
	times := []time.Time{w.deadline()}
	if w.filled != nil {
		times = append(times, w.refresh)
	}
	for _, m := range w.containers {
		times = append(times, m.flipAt)
	}
	return times
}

func earliest(first time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// snapshot returns the pod as the API has it.
func (w *worker) snapshot() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// fieldsChanged reports whether files may have to change that show fields of
// the pod.
func fieldsChanged(old, fresh *corev1.Pod) bool {
	return !maps.Equal(old.Labels, fresh.Labels) || !maps.Equal(old.Annotations, fresh.Annotations)
}
