// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A Kill is a container to stop and why.
type Kill struct {
	Name    string
	Message string
	Sick    Sick // which probe's grace period applies, if any
}

// A Decision is what to do next for a pod.
type Decision struct {
	Start    []string  // in order
	Kill     []Kill    // all at once
	Waiting  []string  // would be started but for their back-off
	Wake     time.Time // when the first back-off ends; zero if none
	Finished bool      // every container has ended for good
	Failed   bool      // an init container failed for good
}

// Next decides what to start and what to stop. It never starts what is busy
// and decides the same again when asked again.
//
// The law: init containers run one after another, a sidecar counts as done
// once it has started; then all app containers run. When the app containers
// have ended for good, the sidecars are stopped, the last one first.
func Next(p *corev1.Pod, seen map[string]Container, now time.Time) Decision {
	d := Decision{}
	n := &next{pod: p, seen: seen, now: now, out: &d}
	n.ephemeral()
	initialized := n.everInitialized()
	if !n.initContainers(initialized) {
		return d
	}
	n.appContainers()
	return d
}

type next struct {
	pod  *corev1.Pod
	seen map[string]Container
	now  time.Time
	out  *Decision
}

// everInitialized reports whether any app container has run: from then on init
// containers are history.
func (n *next) everInitialized() bool {
	return slices.ContainsFunc(n.pod.Spec.Containers, func(c corev1.Container) bool {
		s := n.seen[c.Name]
		return s.Ever || s.Phase == Running || s.Phase == Exited
	})
}

func (n *next) ephemeral() {
	for i := range n.pod.Spec.EphemeralContainers {
		name := n.pod.Spec.EphemeralContainers[i].Name
		if s := n.seen[name]; s.Phase == Absent && !s.Busy {
			n.start(name, s)
		}
	}
}

// initContainers reports whether the app containers may run.
func (n *next) initContainers(initialized bool) bool {
	if !initialized && n.initFailed() {
		n.out.Failed = true
		n.stopAll()
		return false
	}
	over := initialized && n.appsOver()
	for i := range n.pod.Spec.InitContainers {
		c := &n.pod.Spec.InitContainers[i]
		s := n.seen[c.Name]
		if IsSidecar(c) {
			if !over && !n.sidecar(c, s) && !initialized {
				return false
			}
			continue
		}
		if initialized || s.Phase == Exited && s.ExitCode == 0 {
			continue
		}
		switch {
		case s.Busy || s.Phase == Starting || s.Phase == Running:
		default:
			n.start(c.Name, s)
		}
		return false
	}
	return true
}

// initFailed reports whether an init container has failed for good.
func (n *next) initFailed() bool {
	return slices.ContainsFunc(n.pod.Spec.InitContainers, func(c corev1.Container) bool {
		s := n.seen[c.Name]
		return !IsSidecar(&c) && !s.Busy && s.Phase == Exited && s.ExitCode != 0 && !ShouldRestart(n.pod, Init, &c, s.ExitCode)
	})
}

// sidecar keeps one sidecar running and reports whether it has started.
func (n *next) sidecar(c *corev1.Container, s Container) bool {
	switch {
	case s.Busy || s.Phase == Starting:
		return false
	case s.Phase == Running && s.Sick != Well:
		n.kill(c.Name, s.Sick, true)
		return s.Started
	case s.Phase == Running:
		return s.Started
	default:
		n.start(c.Name, s)
		return false
	}
}

func (n *next) appsOver() bool {
	for i := range n.pod.Spec.Containers {
		c := &n.pod.Spec.Containers[i]
		s := n.seen[c.Name]
		if s.Busy || s.Phase != Exited || ShouldRestart(n.pod, App, c, s.ExitCode) {
			return false
		}
	}
	return true
}

func (n *next) appContainers() {
	if n.appsOver() {
		n.stopAll()
		return
	}
	for i := range n.pod.Spec.Containers {
		c := &n.pod.Spec.Containers[i]
		s := n.seen[c.Name]
		switch {
		case s.Busy || s.Phase == Starting:
		case s.Phase == Running && s.Sick != Well:
			n.kill(c.Name, s.Sick, false)
		case s.Phase == Running:
		case s.Phase == Exited && !ShouldRestart(n.pod, App, c, s.ExitCode):
		default:
			n.start(c.Name, s)
		}
	}
}

// End decides what to stop next of a pod that has to end, and whether all of it
// has.
func End(p *corev1.Pod, seen map[string]Container) ([]Kill, bool) {
	d := Decision{}
	n := &next{pod: p, seen: seen, out: &d}
	n.stopAll()
	return d.Kill, d.Finished
}

// stopAll stops what still runs: first all that is not a sidecar, then the
// sidecars from the last to the first, each after the one behind it has ended.
func (n *next) stopAll() {
	n.out.Start = nil
	running := false
	for _, m := range Members(n.pod) {
		if m.Kind != Sidecar && n.stop(m.Spec.Name) {
			running = true
		}
	}
	for _, c := range slices.Backward(n.pod.Spec.InitContainers) {
		if running {
			break
		}
		running = IsSidecar(&c) && n.stop(c.Name)
	}
	n.out.Finished = !running
}

// stop reports whether that container still has to end.
func (n *next) stop(name string) bool {
	s := n.seen[name]
	if s.Phase == Running && !s.Busy {
		n.out.Kill = append(n.out.Kill, Kill{Name: name})
	}
	return s.Busy || s.Phase == Running || s.Phase == Starting
}

func (n *next) kill(name string, why Sick, init bool) {
	what := "Container"
	if init {
		what = "Init container"
	}
	n.out.Kill = append(n.out.Kill, Kill{
		Name: name, Sick: why,
		Message: fmt.Sprintf("%s %s %s, will be restarted", what, name, why),
	})
}

func (n *next) start(name string, s Container) {
	if s.RetryAt.After(n.now) {
		n.out.Waiting = append(n.out.Waiting, name)
		if n.out.Wake.IsZero() || s.RetryAt.Before(n.out.Wake) {
			n.out.Wake = s.RetryAt
		}
		return
	}
	n.out.Start = append(n.out.Start, name)
}

// ShouldRestart reports whether a container that ended with that exit code
// runs again.
func ShouldRestart(p *corev1.Pod, kind Kind, c *corev1.Container, exit int32) bool {
	if kind == Ephemeral {
		return false
	}
	if kind == Sidecar {
		return true
	}
	if c.RestartPolicy != nil {
		if again, matched := ruled(c.RestartPolicyRules, exit); matched {
			return again
		}
		switch *c.RestartPolicy {
		case corev1.ContainerRestartPolicyAlways:
			return true
		case corev1.ContainerRestartPolicyOnFailure:
			return exit != 0
		default:
			return false
		}
	}
	switch p.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exit != 0
	default:
		return kind == App || exit != 0
	}
}

// ruled applies the first restart rule that names the exit code.
func ruled(rules []corev1.ContainerRestartRule, exit int32) (again, matched bool) {
	for _, r := range rules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, exit)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action == corev1.ContainerRestartRuleActionRestart, true
		}
	}
	return false, false
}

// Back-off between restarts of a container: the first restart is at once, then
// 10 s doubling up to 5 min; a run of twice the longest wait starts it over.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
)

// A Backoff is the memory of a container's restarts.
type Backoff struct {
	Delay time.Duration // wait before the next restart; zero: none
	since time.Time     // when the delay was last raised
}

// Ended notes that the container ended at that time and returns when it may
// run again.
func (b Backoff) Ended(at time.Time) (Backoff, time.Time) {
	if !b.since.IsZero() && at.Sub(b.since) > 2*maxBackoff {
		b = Backoff{}
	}
	return b, at.Add(b.Delay)
}

// Restarted notes that the container that ended at that time is started again.
func (b Backoff) Restarted(ended time.Time) Backoff {
	delay := firstBackoff
	if b.Delay > 0 {
		delay = min(2*b.Delay, maxBackoff)
	}
	return Backoff{Delay: delay, since: ended}
}

// RestoredBackoff guesses the back-off of a container that was restarted so
// many times before this process looked at it.
func RestoredBackoff(restarts int, ended time.Time) Backoff {
	b := Backoff{}
	for range min(restarts, 10) {
		b = b.Restarted(ended)
	}
	return b
}

// CrashLoop is the waiting state of a container that may not restart yet.
func CrashLoop(p *corev1.Pod, container string, delay time.Duration) *corev1.ContainerStateWaiting {
	return &corev1.ContainerStateWaiting{
		Reason:  "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, container, FullName(p)),
	}
}
