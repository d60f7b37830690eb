// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var always = corev1.ContainerRestartPolicyAlways

// testPod has init containers i1 and i2 with the sidecar s between them, apps a
// and b, and an ephemeral container e.
func testPod(policy corev1.RestartPolicy) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid"},
		Spec: corev1.PodSpec{
			RestartPolicy:       policy,
			InitContainers:      []corev1.Container{{Name: "i1"}, {Name: "s", RestartPolicy: &always}, {Name: "i2"}},
			Containers:          []corev1.Container{{Name: "a"}, {Name: "b"}},
			EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}},
		},
	}
}

var (
	up      = Container{Phase: Running, Ever: true, Started: true, Ready: true, ID: "x"}
	ok      = Container{Phase: Exited, Ever: true, ID: "x"}
	bad     = Container{Phase: Exited, Ever: true, ExitCode: 1, ID: "x"}
	busy    = Container{Busy: true}
	slow    = Container{Phase: Running, Ever: true}
	stopped = Container{Phase: Exited, Ever: true, ExitCode: 137, ID: "x"}
)

func TestNext(t *testing.T) {
	now := time.Unix(1000, 0)
	later := bad
	later.RetryAt = now.Add(time.Minute)
	sick := up
	sick.Sick = FailedLiveness
	for _, tt := range []struct {
		name   string
		policy corev1.RestartPolicy
		seen   map[string]Container
		want   Decision
	}{
		{"nothing yet", corev1.RestartPolicyAlways, nil, Decision{Start: []string{"e", "i1"}}},
		{"first is busy", corev1.RestartPolicyAlways, map[string]Container{"e": busy, "i1": busy}, Decision{}},
		{"first is done", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "i1": ok}, Decision{Start: []string{"s"}}},
		{"sidecar not started", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "i1": ok, "s": slow}, Decision{}},
		{"sidecar started", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "i1": ok, "s": up}, Decision{Start: []string{"i2"}}},
		{"initialized", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "i1": ok, "s": up, "i2": ok}, Decision{Start: []string{"a", "b"}}},
		{"init fails, again", corev1.RestartPolicyOnFailure, map[string]Container{"e": ok, "i1": bad}, Decision{Start: []string{"i1"}}},
		{"init fails, waits", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "i1": later}, Decision{Waiting: []string{"i1"}, Wake: later.RetryAt}},
		{"init fails for good", corev1.RestartPolicyNever, map[string]Container{"e": ok, "i1": ok, "s": up, "i2": bad}, Decision{Failed: true, Kill: []Kill{{Name: "s"}}}},
		{"init failed, all stopped", corev1.RestartPolicyNever, map[string]Container{"e": ok, "i1": ok, "s": stopped, "i2": bad}, Decision{Failed: true, Finished: true}},
		{"runs", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "i1": ok, "s": up, "i2": ok, "a": up, "b": up}, Decision{}},
		{"init is history", corev1.RestartPolicyAlways, map[string]Container{"e": ok, "s": up, "a": up, "b": up}, Decision{}},
		{"sidecar crashed", corev1.RestartPolicyNever, map[string]Container{"e": ok, "s": bad, "a": up, "b": up}, Decision{Start: []string{"s"}}},
		{"app crashed", corev1.RestartPolicyOnFailure, map[string]Container{"e": ok, "s": up, "a": bad, "b": ok}, Decision{Start: []string{"a"}}},
		{"app done, never", corev1.RestartPolicyNever, map[string]Container{"e": ok, "s": up, "a": bad, "b": up}, Decision{}},
		{"apps over", corev1.RestartPolicyOnFailure, map[string]Container{"e": up, "s": up, "a": ok, "b": ok}, Decision{Kill: []Kill{{Name: "e"}}}},
		{"apps over, sidecar left", corev1.RestartPolicyOnFailure, map[string]Container{"e": ok, "s": up, "a": ok, "b": ok}, Decision{Kill: []Kill{{Name: "s"}}}},
		{"all over", corev1.RestartPolicyOnFailure, map[string]Container{"e": ok, "s": stopped, "a": ok, "b": ok}, Decision{Finished: true}},
		{"app is sick", corev1.RestartPolicyNever, map[string]Container{"e": ok, "s": up, "a": sick, "b": up},
			Decision{Kill: []Kill{{Name: "a", Sick: FailedLiveness, Message: "Container a failed liveness probe, will be restarted"}}}},
		{"sidecar is sick", corev1.RestartPolicyNever, map[string]Container{"e": ok, "s": sick, "a": up, "b": up},
			Decision{Kill: []Kill{{Name: "s", Sick: FailedLiveness, Message: "Init container s failed liveness probe, will be restarted"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Next(testPod(tt.policy), tt.seen, now); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestEnd(t *testing.T) {
	p := testPod(corev1.RestartPolicyAlways)
	p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: "s2", RestartPolicy: &always})
	for _, tt := range []struct {
		seen map[string]Container
		kill []string
		over bool
	}{
		{map[string]Container{"e": up, "s": up, "s2": up, "a": up, "b": up}, []string{"a", "b", "e"}, false},
		{map[string]Container{"e": ok, "s": up, "s2": up, "a": ok, "b": busy}, nil, false},
		{map[string]Container{"e": ok, "s": up, "s2": up, "a": ok, "b": ok}, []string{"s2"}, false},
		{map[string]Container{"e": ok, "s": up, "s2": ok, "a": ok, "b": ok}, []string{"s"}, false},
		{map[string]Container{"e": ok, "s": ok, "s2": ok, "a": ok}, nil, true},
		{nil, nil, true},
	} {
		kills, over := End(p, tt.seen)
		var names []string
		for _, k := range kills {
			names = append(names, k.Name)
		}
		if !reflect.DeepEqual(names, tt.kill) || over != tt.over {
			t.Errorf("got %v %v, want %v %v", names, over, tt.kill, tt.over)
		}
	}
}

func TestShouldRestart(t *testing.T) {
	onExit := func(op corev1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) corev1.Container {
		never := corev1.ContainerRestartPolicyNever
		return corev1.Container{RestartPolicy: &never, RestartPolicyRules: []corev1.ContainerRestartRule{{
			Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes},
		}}}
	}
	for _, tt := range []struct {
		policy corev1.RestartPolicy
		kind   Kind
		c      corev1.Container
		exit   int32
		want   bool
	}{
		{corev1.RestartPolicyAlways, App, corev1.Container{}, 0, true},
		{corev1.RestartPolicyAlways, Init, corev1.Container{}, 0, false},
		{corev1.RestartPolicyAlways, Init, corev1.Container{}, 1, true},
		{corev1.RestartPolicyOnFailure, App, corev1.Container{}, 0, false},
		{corev1.RestartPolicyOnFailure, App, corev1.Container{}, 1, true},
		{corev1.RestartPolicyNever, App, corev1.Container{}, 1, false},
		{corev1.RestartPolicyNever, Sidecar, corev1.Container{}, 0, true},
		{corev1.RestartPolicyAlways, Ephemeral, corev1.Container{}, 1, false},
		{corev1.RestartPolicyNever, App, onExit("In", 42), 42, true},
		{corev1.RestartPolicyAlways, App, onExit("In", 42), 1, false},
		{corev1.RestartPolicyNever, App, onExit("NotIn", 42), 1, true},
		{corev1.RestartPolicyAlways, App, onExit("NotIn", 42), 42, false},
	} {
		if got := ShouldRestart(testPod(tt.policy), tt.kind, &tt.c, tt.exit); got != tt.want {
			t.Errorf("%s, kind %d, exit %d: got %v", tt.policy, tt.kind, tt.exit, got)
		}
	}
}

// TestBackoff plays a container that ends one second after each start.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Backoff
		var waits []time.Duration
		for range 8 {
			time.Sleep(time.Second)
			ended := time.Now()
			var at time.Time
			b, at = b.Ended(ended)
			time.Sleep(time.Until(at))
			waits = append(waits, time.Since(ended))
			b = b.Restarted(ended)
		}
		if want := "[0s 10s 20s 40s 1m20s 2m40s 5m0s 5m0s]"; fmt.Sprint(waits) != want {
			t.Errorf("waits are %v, want %v", waits, want)
		}
		time.Sleep(time.Hour)
		if _, at := b.Ended(time.Now()); !at.Equal(time.Now()) {
			t.Errorf("after a long run it waits %s", time.Until(at))
		}
		if got := RestoredBackoff(3, time.Now()).Delay; got != 40*time.Second {
			t.Errorf("restored delay is %s", got)
		}
	})
}

// TestProber plays a container that answers from a time on.
func TestProber(t *testing.T) {
	for _, tt := range []struct {
		name    string
		kind    ProbeKind
		spec    corev1.Probe
		from    time.Duration // of its life in which it is well
		until   time.Duration
		result  ProbeResult
		within  time.Duration // after it is so
		atTime  time.Duration // when the result is expected at the earliest
		maxAsks int
	}{
		{"ready at once", Readiness, corev1.Probe{PeriodSeconds: 10}, 0, time.Hour, Passed, 0, 0, 1},
		{"ready after 8ms", Readiness, corev1.Probe{PeriodSeconds: 1}, 8 * time.Millisecond, time.Hour, Passed, 3 * time.Millisecond, 0, 10},
		{"ready after 3s", Readiness, corev1.Probe{PeriodSeconds: 10}, 3 * time.Second, time.Hour, Passed, 700 * time.Millisecond, 0, 45},
		{"initial delay", Readiness, corev1.Probe{PeriodSeconds: 1, InitialDelaySeconds: 2}, 0, time.Hour, Passed, 0, 2 * time.Second, 1},
		{"two successes", Readiness, corev1.Probe{PeriodSeconds: 2, SuccessThreshold: 2}, 0, time.Hour, Passed, 0, 2 * time.Second, 2},
		{"startup fails", Startup, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 5}, time.Hour, time.Hour, Failed, 5900 * time.Millisecond, 5 * time.Second, 60},
		{"liveness fails", Liveness, corev1.Probe{PeriodSeconds: 2, FailureThreshold: 3}, time.Hour, time.Hour, Failed, 4 * time.Second, 4 * time.Second, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			p := NewProber(tt.kind, &tt.spec, start)
			asks := 0
			now := start
			for p.Result == Undecided {
				now = p.Due(1)
				life := now.Sub(start)
				p, _ = p.Answer(life >= tt.from && life < tt.until, now)
				if asks++; asks > 1000 {
					t.Fatal("no result")
				}
			}
			took := now.Sub(start)
			late := took - max(tt.atTime, min(tt.from, time.Minute))
			if tt.result == Failed {
				late = took
			}
			if p.Result != tt.result || late > max(tt.within, 0) && tt.result != Failed || took < tt.atTime || tt.result == Failed && took > tt.within || asks > tt.maxAsks {
				t.Errorf("result %d after %s (%s late) and %d questions", p.Result, took, late, asks)
			}
		})
	}
}

func TestProberEarlyFailuresAreNotTold(t *testing.T) {
	start := time.Unix(1000, 0)
	p := NewProber(Readiness, &corev1.Probe{PeriodSeconds: 1}, start)
	told := 0
	for now := start; now.Sub(start) < 3500*time.Millisecond; now = p.Due(1) {
		var counts bool
		if p, counts = p.Answer(false, now); counts {
			told++
		}
	}
	if told != 3 {
		t.Errorf("%d failures in three periods were told", told)
	}
	p, _ = p.Answer(true, start.Add(4*time.Second))
	if p.Result != Passed {
		t.Errorf("result is %d", p.Result)
	}
	if due := p.Due(1); due.Sub(start) != 5*time.Second {
		t.Errorf("asked again after %s", due.Sub(start))
	}
	crowd := NewProber(Readiness, &corev1.Probe{PeriodSeconds: 1}, start)
	crowd, _ = crowd.Answer(false, start)
	if alone, many := crowd.Due(1), crowd.Due(40); many.Sub(start) != 10*alone.Sub(start) {
		t.Errorf("alone %s, in a crowd %s", alone.Sub(start), many.Sub(start))
	}
}
