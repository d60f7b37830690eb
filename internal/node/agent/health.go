// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/probe"
)

// watchHealth begins the probes of a container that runs. was is what its
// status said before this process looked at it, if it did. The worker is locked.
func (w *worker) watchHealth(m *member, was *corev1.ContainerStatus) {
	if m.Kind == pod.Init || m.Kind == pod.Ephemeral {
		m.Started = true
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	m.probes = cancel
	startup := m.Spec.StartupProbe
	if startup == nil || was != nil && isTrue(was.Started) {
		w.passedStartup(ctx, m, was)
		return
	}
	w.probe(ctx, m, pod.NewProber(pod.Startup, startup, m.StartedAt))
}

// passedStartup begins the probes that wait for the startup probe.
func (w *worker) passedStartup(ctx context.Context, m *member, was *corev1.ContainerStatus) {
	m.Started = true
	if spec := m.Spec.ReadinessProbe; spec == nil {
		m.Ready = true
	} else {
		p := pod.NewProber(pod.Readiness, spec, m.StartedAt)
		if was != nil && was.Ready {
			m.Ready = true
			p = p.Adopted(pod.Passed)
		}
		w.probe(ctx, m, p)
	}
	if spec := m.Spec.LivenessProbe; spec != nil {
		w.probe(ctx, m, pod.NewProber(pod.Liveness, spec, m.StartedAt))
	}
}

// probe asks again and again, beside the worker.
func (w *worker) probe(ctx context.Context, m *member, p pod.Prober) {
	member, id := m.Member, m.ID
	go w.ask(ctx, member, id, p)
}

func (w *worker) ask(ctx context.Context, m pod.Member, id string, p pod.Prober) {
	spec := pod.ProbeOf(m.Spec, p.Kind)
	target := probe.Target{IP: w.address(), Container: m.Spec, Exec: w.a.execIn(id)}
	early := p.Result == pod.Undecided && p.Kind != pod.Liveness
	if early {
		w.a.crowd.Add(1)
	}
	calm := func() {
		if early {
			early = false
			w.a.crowd.Add(-1)
		}
	}
	defer calm()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait := p.Due(int(w.a.crowd.Load())).Sub(w.a.now()); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		} else if ctx.Err() != nil {
			return
		}
		answer := w.a.asker.Ask(ctx, spec, target)
		if ctx.Err() != nil {
			return
		}
		before := p.Result
		p = w.weigh(m, p, answer)
		if p.Result != pod.Undecided {
			calm()
		}
		if p.Result != before && w.diagnosed(ctx, m, id, p) {
			return
		}
	}
}

// weigh takes an answer and tells of it if it matters.
func (w *worker) weigh(m pod.Member, p pod.Prober, a probe.Answer) pod.Prober {
	now := w.a.now()
	if a.Err != nil {
		next, counts := p.Postpone(now), p.Result != pod.Undecided
		if counts {
			w.a.warn(w.snapshot(), &m, "Unhealthy", "%s probe errored and resulted in unknown state: %v", p.Kind, a.Err)
		}
		return next
	}
	next, counts := p.Answer(a.OK, now)
	switch {
	case a.Warning && next.Result != p.Result:
		w.a.warn(w.snapshot(), &m, "ProbeWarning", "%s probe warning: %s", p.Kind, a.Output)
	case !a.OK && counts:
		w.a.warn(w.snapshot(), &m, "Unhealthy", "%s probe failed: %s", p.Kind, a.Output)
	}
	return next
}

// diagnosed takes what a probe has found and reports whether the probe is over.
func (w *worker) diagnosed(ctx context.Context, m pod.Member, id string, p pod.Prober) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.poke()
	have := w.containers[m.Spec.Name]
	if have.ID != id || have.Phase != pod.Running {
		return true
	}
	passed := p.Result == pod.Passed
	switch p.Kind {
	case pod.Readiness:
		have.Ready = passed
		w.announce()
		return false
	case pod.Liveness:
		if !passed && !w.ending {
			have.Sick = pod.FailedLiveness
			return true
		}
		return false
	default: // startup
		if passed {
			w.passedStartup(ctx, have, nil)
			w.announce()
		} else if !w.ending {
			have.Sick = pod.FailedStartup
		}
		return true
	}
}

// maxExecOutput bounds what a probe or a hook may print.
const maxExecOutput = 64 << 10

// execIn runs commands in a container for probes and hooks.
func (a *Agent) execIn(id string) func(context.Context, []string) (int, []byte, error) {
	return func(ctx context.Context, args []string) (int, []byte, error) {
		out := &bounded{max: maxExecOutput}
		code, err := a.o.Containers.Exec(ctx, id, container.ExecSpec{Args: args}, container.Streams{Out: out, Err: out})
		return code, out.bytes(), err
	}
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	mu  sync.Mutex // standard output and standard error write at the same time
	buf bytes.Buffer
	max int
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := b.max - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *bounded) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

// hook runs a lifecycle hook.
func (a *Agent) hook(ctx context.Context, p *corev1.Pod, m *pod.Member, id, ip string, h *corev1.LifecycleHandler) error {
	name := pod.FullName(p)
	switch {
	case h.Exec != nil:
		code, out, err := a.execIn(id)(ctx, h.Exec.Command)
		if err == nil && code != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), code, out)
		}
		if err != nil {
			return fmt.Errorf("%s lifecycle hook (%v) for Container %q in Pod %q failed - error: %w, message: %q", "Exec", h.Exec.Command, m.Spec.Name, name, err, out)
		}
		return nil
	case h.HTTPGet != nil:
		err := a.asker.Get(ctx, h.HTTPGet, probe.Target{IP: ip, Container: m.Spec})
		if err != nil {
			return fmt.Errorf("%s lifecycle hook (%s) for Container %q in Pod %q failed - error: %w", "HTTP", h.HTTPGet.Path, m.Spec.Name, name, err)
		}
		return nil
	case h.Sleep != nil:
		select {
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s lifecycle hook (%d) for Container %q in Pod %q failed - error: %w", "Sleep", h.Sleep.Seconds, m.Spec.Name, name, context.Cause(ctx))
		}
	}
	return errors.New("invalid lifecycle hook")
}
