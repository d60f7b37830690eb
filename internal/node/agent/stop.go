// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/pod"
)

// Every container gets a moment to end by itself, whatever its grace period.
const leastGrace = 2 * time.Second

// killAgain is how long after SIGKILL a container that still has not ended is
// killed again.
const killAgain = 10 * time.Second

// stop begins to end a container: its preStop hook, its stop signal, and SIGKILL
// when its time is up.
func (w *worker) stop(m *member, k pod.Kill) {
	message := k.Message
	if message == "" {
		message = "Stopping container " + m.Spec.Name
	}
	w.a.note(w.pod, &m.Member, "Killing", "%s", message)
	m.Busy = true
	if m.probes != nil && k.Sick != pod.Well {
		m.probes()
	}
	by := w.a.now().Add(w.graceOf(m, k.Sick))
	if w.ending && !w.killBy.IsZero() {
		by = w.killBy
	}
	p, id, member, exited := w.pod, m.ID, m.Member, m.exited
	go func() {
		w.kill(p, member, id, exited, by)
		w.mu.Lock()
		if m := w.containers[member.Spec.Name]; m.ID == id {
			m.Busy = false
		}
		w.mu.Unlock()
		w.poke()
	}()
}

// graceOf is how long a container may take to end.
func (w *worker) graceOf(m *member, why pod.Sick) time.Duration {
	var probe *corev1.Probe
	switch why {
	case pod.FailedLiveness:
		probe = m.Spec.LivenessProbe
	case pod.FailedStartup:
		probe = m.Spec.StartupProbe
	}
	if probe != nil && probe.TerminationGracePeriodSeconds != nil {
		return time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
	}
	return podGrace(w.pod)
}

func podGrace(p *corev1.Pod) time.Duration {
	switch {
	case p.DeletionGracePeriodSeconds != nil:
		return time.Duration(*p.DeletionGracePeriodSeconds) * time.Second
	case p.Spec.TerminationGracePeriodSeconds != nil:
		return time.Duration(*p.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	return 30 * time.Second
}

// kill ends a container and returns when it has ended.
func (w *worker) kill(p *corev1.Pod, m pod.Member, id string, exited <-chan struct{}, by time.Time) {
	begun := w.a.now()
	if hook := m.Spec.Lifecycle; hook != nil && hook.PreStop != nil && by.Sub(begun) > 0 {
		w.preStop(p, &m, id, hook.PreStop, exited, by)
	}
	w.drain(p, exited, by)
	if least := w.a.now().Add(leastGrace); by.Before(least) {
		by = least
	}
	if err := w.a.o.Containers.Signal(w.ctx, id, w.stopSignal(id, m.Spec)); err != nil && !gone(err) {
		w.a.log.Warn("container not signalled", "pod", pod.FullName(p), "container", m.Spec.Name, "err", err)
	}
	if w.awaitExit(exited, by) {
		return
	}
	for {
		if err := w.a.o.Containers.Kill(w.ctx, id); err != nil && !gone(err) {
			w.a.log.Warn("container not killed", "pod", pod.FullName(p), "container", m.Spec.Name, "err", err)
		} else if errors.Is(err, container.ErrNotFound) {
			w.lost(id)
			return
		}
		select {
		case <-exited:
			return
		case <-time.After(killAgain):
		case <-w.ctx.Done():
			return
		}
	}
}

func gone(err error) bool {
	return errors.Is(err, container.ErrNotFound) || errors.Is(err, container.ErrNotRunning)
}

// awaitExit waits for the end of a container, until its time is up or its pod
// is in a hurry.
func (w *worker) awaitExit(exited <-chan struct{}, by time.Time) bool {
	timer := time.NewTimer(by.Sub(w.a.now()))
	defer timer.Stop()
	for {
		w.mu.Lock()
		hurry := w.hurry
		w.mu.Unlock()
		select {
		case <-exited:
			return true
		case <-timer.C:
			return false
		case <-w.ctx.Done():
			return false
		case <-hurry:
			w.mu.Lock()
			if w.killBy.Before(by) {
				by = w.killBy
				timer.Reset(max(0, by.Sub(w.a.now())))
			}
			w.mu.Unlock()
		}
	}
}

// preStop runs the hook, no longer than the container has and than it lives.
func (w *worker) preStop(p *corev1.Pod, m *pod.Member, id string, h *corev1.LifecycleHandler, exited <-chan struct{}, by time.Time) {
	ctx, cancel := context.WithDeadline(w.ctx, by)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.a.hook(ctx, p, m, id, w.address(), h) }()
	select {
	case err := <-done:
		if err != nil && ctx.Err() == nil {
			w.a.warn(p, m, "FailedPreStopHook", "PreStopHook failed")
		}
	case <-exited:
	}
}

// drain waits until the data plane has no request in a pod that is leaving: a
// program that ends at its signal would break them off.
func (w *worker) drain(p *corev1.Pod, exited <-chan struct{}, by time.Time) {
	if w.a.o.Drained == nil || p.DeletionTimestamp == nil {
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.a.o.Drained(ctx, PodEndpoint{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels, Terminating: true})
	}()
	w.awaitExit(merged(ctx, done, exited), by)
}

// merged is closed when one of the two is, or ctx ends.
func merged(ctx context.Context, a, b <-chan struct{}) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		select {
		case <-a:
		case <-b:
		case <-ctx.Done():
		}
	}()
	return out
}

// address is the pod's IP address, once it has one.
func (w *worker) address() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s, ok := w.sandbox.now(); ok && s.IP.IsValid() {
		return s.IP.String()
	}
	return ""
}

func (w *worker) stopSignal(id string, c *corev1.Container) syscall.Signal {
	name := ""
	if st, err := w.a.o.Containers.Status(w.ctx, id); err == nil {
		name = st.Labels[labelSignal]
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		name = string(*c.Lifecycle.StopSignal)
	}
	return parseSignal(name)
}

// parseSignal reads SIGINT, INT, 2 or SIGRTMIN+3; SIGTERM when it is none.
func parseSignal(name string) syscall.Signal {
	name = strings.ToUpper(strings.TrimSpace(name))
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	if name == "" {
		return syscall.SIGTERM
	}
	name = "SIG" + strings.TrimPrefix(name, "SIG")
	if base, plus, ok := strings.Cut(name, "+"); ok || name == "SIGRTMIN" {
		n, _ := strconv.Atoi(plus)
		if base == "SIGRTMIN" && n >= 0 && n <= 30 {
			return syscall.Signal(34 + n)
		}
	}
	if n := unix.SignalNum(name); n != 0 {
		return n
	}
	return syscall.SIGTERM
}

// lost notes the end of a container that the runtime does not know any more.
func (w *worker) lost(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.containers {
		if m.ID == id && m.Phase == pod.Running {
			w.ended(m, container.Event{ID: id, FinishedAt: w.a.now(), Exit: container.Exit{Code: 137, Unknown: true}})
		}
	}
}

// exit takes the news of a container's end.
func (w *worker) exit(e container.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.containers {
		if m.ID == e.ID && m.Phase != pod.Exited {
			w.ended(m, e)
			w.announce()
			w.poke()
		}
	}
}

// ended notes how a container ended.
func (w *worker) ended(m *member, e container.Event) {
	m.Phase, m.Ready, m.Started, m.Sick, m.Ever = pod.Exited, false, false, pod.Well, true
	m.ExitCode, m.Signal = int32(e.Exit.Code), int32(e.Exit.Signal)
	m.FinishedAt = e.FinishedAt
	if m.StartedAt.IsZero() {
		m.StartedAt = e.FinishedAt
	}
	m.Reason = pod.EndReason(m.ExitCode, e.Exit.OOMKilled)
	if e.Exit.Unknown {
		m.Reason = "Unknown"
	}
	m.Message = w.a.terminationMessage(w.uid, m)
	m.backoff, m.RetryAt = m.backoff.Ended(m.FinishedAt)
	if m.probes != nil {
		m.probes()
	}
	select {
	case <-m.exited:
	default:
		close(m.exited)
	}
}

// end stops what runs and, when nothing does, clears away.
func (w *worker) end(now time.Time) {
	if !w.over {
		w.setKillBy(now)
		kills, over := pod.End(w.pod, w.seen())
		for _, k := range kills {
			w.stop(w.containers[k.Name], k)
		}
		w.over = over
	}
	if w.over && !w.cleaning {
		w.cleaning = true
		go w.cleanUp()
	}
}

// setKillBy sets the end of the grace period. A pod that is deleted again, in
// more of a hurry, has less of it.
func (w *worker) setKillBy(now time.Time) {
	grace := podGrace(w.pod)
	if w.verdict != nil && w.verdict.Reason == "Evicted" || w.deleted && w.pod.DeletionTimestamp == nil {
		grace = leastGrace
	}
	by := now.Add(grace)
	if t := w.pod.DeletionTimestamp; t != nil && t.Time.Before(by) {
		by = t.Time // set by the API server to the end of the grace period
	}
	if w.killBy.IsZero() {
		w.killBy = by
		return
	}
	if by.Before(w.killBy.Add(-time.Second)) && (w.deleted || w.pod.DeletionTimestamp != nil) {
		w.killBy = by
		close(w.hurry)
		w.hurry = make(chan struct{})
	}
}

// cleanUp removes all of the pod but its logs and its object.
func (w *worker) cleanUp() {
	a := w.a
	w.mu.Lock()
	var ids []string
	for _, m := range w.containers {
		if m.ID != "" {
			ids = append(ids, m.ID)
		}
	}
	w.mu.Unlock()
	for _, id := range ids {
		a.discard(id)
	}
	// What brings the pod up has been told to end; its leavings come before ours.
	for _, f := range []<-chan struct{}{done(w.sandbox), done(w.placed), done(w.filled)} {
		if f != nil {
			<-f
		}
	}
	a.objects.drop(w.uid)
	insist(w.ctx, func() (struct{}, error) {
		return struct{}{}, errors.Join(
			a.o.Network.Release(w.ctx, string(w.uid)),
			a.volumes.Remove(w.uid),
			removeCgroup(w.uid),
		)
	}, func(err error) {
		a.log.Warn("pod not cleared away", "pod", pod.FullName(w.snapshot()), "err", err)
	})
	if w.ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	w.cleaned = true
	w.sandbox = nil
	w.mu.Unlock()
	w.poke()
}

func done[T any](f *future[T]) <-chan struct{} {
	if f == nil {
		return nil
	}
	return f.done
}

// removeLogs removes what the pod has written; it is gone from the API.
func (w *worker) removeLogs() {
	if err := os.RemoveAll(w.a.podLogDir(w.snapshot())); err != nil {
		w.a.log.Warn("logs not removed", "err", fmt.Errorf("removing logs: %w", err))
	}
}
