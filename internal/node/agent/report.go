// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/sonagi/sonagi/internal/node/pod"
)

// announce tells the data plane of the pod, if there is news. The worker is
// locked.
func (w *worker) announce() {
	e := PodEndpoint{
		Namespace: w.pod.Namespace, Name: w.pod.Name, UID: w.uid, Labels: w.pod.Labels,
		IP: w.ip(), Ready: w.ready(), Terminating: w.ending, Gone: w.over,
	}
	last := w.announced
	if last == nil && !e.Ready || last != nil && sameEndpoint(*last, e) {
		return
	}
	w.announced = &e
	if w.a.o.OnEndpoint != nil {
		w.a.o.OnEndpoint(e)
	}
}

func sameEndpoint(a, b PodEndpoint) bool {
	return a.IP == b.IP && a.Ready == b.Ready && a.Terminating == b.Terminating && a.Gone == b.Gone && maps.Equal(a.Labels, b.Labels)
}

func (w *worker) ip() netip.Addr {
	if s, ok := w.sandbox.now(); ok {
		return s.IP
	}
	if w.announced != nil {
		return w.announced.IP
	}
	return netip.Addr{}
}

// ready reports whether the pod takes requests: all its containers are ready,
// and so say those who have a readiness gate.
func (w *worker) ready() bool {
	if w.over || w.verdict != nil {
		return false
	}
	for _, m := range w.containers {
		if (m.Kind == pod.App || m.Kind == pod.Sidecar) && !(m.Phase == pod.Running && m.Started && m.Ready && !m.hooking) {
			return false
		}
	}
	for _, gate := range w.pod.Spec.ReadinessGates {
		if !conditionTrue(&w.pod.Status, gate.ConditionType) {
			return false
		}
	}
	return len(w.containers) > 0
}

func conditionTrue(s *corev1.PodStatus, t corev1.PodConditionType) bool {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// report makes the pod's status and has it sent, if it is news. The worker is
// locked.
func (w *worker) report(now time.Time) {
	if w.deleted {
		if w.cleaned {
			go w.sender.finish() // somebody else has removed the object
		}
		return
	}
	old := w.status
	if old == nil {
		old = &w.pod.Status
	}
	o := pod.Observation{
		Containers: w.seen(), HostIP: w.a.hostIP(), Now: now,
		StartTime: w.startTime, Finished: w.over, Verdict: w.verdict,
	}
	for name, m := range w.containers {
		if m.hooking {
			c := o.Containers[name]
			c.Phase = pod.Absent
			o.Containers[name] = c
		}
	}
	if s, ok := w.sandbox.now(); ok {
		o.Sandbox = !w.over
		if s.IP.IsValid() {
			o.IP = s.IP.String()
		}
	}
	if !w.over && w.anyRunning() {
		o.Verdict = nil // a pod has not failed while something of it runs
	}
	s := pod.Status(w.pod, old, o)
	if w.over && !pod.Terminal(s.Phase) {
		s.Phase = corev1.PodFailed // it ended before it had begun
	}
	if w.status == nil && equality.Semantic.DeepEqual(*old, s) {
		w.status = &s
	}
	if w.status == nil || !equality.Semantic.DeepEqual(*w.status, s) {
		w.status = &s
		w.sender.send(s, w.urgent(old, &s))
	}
	if w.cleaned && w.pod.DeletionTimestamp != nil {
		w.sender.remove()
	}
}

func (w *worker) anyRunning() bool {
	for _, m := range w.containers {
		if m.Phase == pod.Running {
			return true
		}
	}
	return false
}

// urgent reports whether someone waits for the news. Of a pod that is being
// deleted only the end is waited for, and that is told with its removal.
func (w *worker) urgent(old, s *corev1.PodStatus) bool {
	if w.pod.DeletionTimestamp != nil {
		return false
	}
	if pod.IsReady(old) != pod.IsReady(s) || pod.Terminal(s.Phase) {
		return true
	}
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for _, c := range list {
			why := c.State.Waiting
			if c.State.Terminated != nil || why != nil && why.Reason != "ContainerCreating" && why.Reason != "PodInitializing" {
				return true
			}
		}
	}
	return false
}

// A sender writes the statuses of one pod, one at a time, and of several that
// come together only the last. It belongs to the lock of its worker.
type sender struct {
	w       *worker
	want    *corev1.PodStatus
	sent    *corev1.PodStatus
	busy    bool
	now     chan struct{} // closed: do not wait for more news
	delete  bool          // remove the pod's object when all is told
	once    sync.Once
	removed bool // nothing of the pod is left
}

// newsDelay is how long news that nobody waits for may wait for more news: a
// pod that starts is soon a pod that runs.
const newsDelay = 150 * time.Millisecond

func (s *sender) init(w *worker) { s.w, s.now = w, make(chan struct{}) }

func (s *sender) send(status corev1.PodStatus, urgent bool) {
	s.want = &status
	if urgent {
		s.hasten()
	}
	s.begin()
}

func (s *sender) remove() {
	if s.delete || s.removed {
		return
	}
	s.delete = true
	s.hasten()
	s.begin()
}

func (s *sender) hasten() {
	select {
	case <-s.now:
	default:
		close(s.now)
	}
}

func (s *sender) begin() {
	if !s.busy {
		s.busy = true
		go s.run()
	}
}

// run sends until there is nothing to send.
func (s *sender) run() {
	retry := 50 * time.Millisecond
	for {
		s.w.mu.Lock()
		now := s.now
		s.w.mu.Unlock()
		select {
		case <-now:
		case <-time.After(newsDelay):
		case <-s.w.ctx.Done():
			return
		}
		step := s.next()
		if step == nil {
			return
		}
		if step() {
			retry = 50 * time.Millisecond
			continue
		}
		select {
		case <-time.After(retry):
			retry = min(2*retry, time.Second)
		case <-s.w.ctx.Done():
			return
		}
	}
}

// next is what to do now, or nil. The pod's object is removed last.
func (s *sender) next() func() bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	p := s.w.pod
	switch {
	case s.removed || s.w.deleted:
	case s.want != nil:
		status := s.want
		s.want = nil
		s.now = make(chan struct{})
		if s.delete {
			close(s.now)
		}
		return func() bool { return s.patch(p, status) }
	case s.delete:
		return func() bool { return s.deleteObject(p) }
	}
	s.busy = false
	if !s.delete {
		s.now = make(chan struct{})
	}
	return nil
}

// patch writes what differs from what was written last.
func (s *sender) patch(p *corev1.Pod, status *corev1.PodStatus) bool {
	last := s.sent
	if last == nil {
		last = &p.Status
	}
	data, err := statusPatch(p.UID, last, status)
	if err == nil {
		ctx, cancel := context.WithTimeout(s.w.ctx, 10*time.Second)
		_, err = s.w.a.o.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
		cancel()
	}
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		s.sent = status
		return true
	}
	s.w.a.log.Warn("pod status not written", "pod", pod.FullName(p), "err", err)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if apierrors.IsInvalid(err) {
		s.sent = nil // what is there is not what we think: compare with the object again
	}
	if s.want == nil {
		s.want = status
	}
	s.hasten()
	return false
}

// statusPatch is the patch from one status to another. The UID keeps it from
// another pod of the same name.
func statusPatch(uid types.UID, from, to *corev1.PodStatus) ([]byte, error) {
	a, err := json.Marshal(corev1.Pod{Status: *from})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: *to})
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(a, b, corev1.Pod{})
}

func (s *sender) deleteObject(p *corev1.Pod) bool {
	ctx, cancel := context.WithTimeout(s.w.ctx, 10*time.Second)
	defer cancel()
	now := int64(0)
	err := s.w.a.o.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now,
		Preconditions:      &metav1.Preconditions{UID: &p.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		s.w.a.log.Warn("pod object not removed", "pod", pod.FullName(p), "err", err)
		return false
	}
	s.finish()
	return true
}

// finish removes the last of the pod, once its object is gone.
func (s *sender) finish() {
	s.once.Do(func() {
		s.w.removeLogs()
		s.w.mu.Lock()
		s.removed = true
		s.w.mu.Unlock()
		s.w.poke()
	})
}
