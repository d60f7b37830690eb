// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// line is what a person would read first of a status.
func line(s corev1.PodStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", s.Phase, s.Reason)
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, " | %s ", c.Name)
			switch {
			case c.State.Running != nil:
				b.WriteString("running")
			case c.State.Terminated != nil:
				b.WriteString(c.State.Terminated.Reason)
			default:
				b.WriteString("~" + c.State.Waiting.Reason)
			}
			if c.Ready {
				b.WriteString("+")
			}
			if c.LastTerminationState.Terminated != nil {
				b.WriteString(" last " + c.LastTerminationState.Terminated.Reason)
			}
		}
	}
	for _, c := range s.Conditions {
		fmt.Fprintf(&b, " | %s=%s", c.Type, c.Status)
		if c.Reason != "" {
			b.WriteString(" " + c.Reason)
		}
	}
	return strings.TrimSpace(b.String())
}

func TestStatus(t *testing.T) {
	done := Container{Phase: Exited, Ever: true, ID: "1", Reason: "Completed"}
	err := Container{Phase: Exited, Ever: true, ID: "1", Reason: "Error", ExitCode: 1}
	loop := err
	loop.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
	pull := Container{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}
	again := Container{Busy: true, Ever: true, Last: &corev1.ContainerStateTerminated{Reason: "Error"}}
	unready := up
	unready.Ready = false
	simple := func(policy corev1.RestartPolicy) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: policy, Containers: []corev1.Container{{Name: "a"}}}}
	}
	const good, fresh = " | Initialized=True", "PodReadyToStartContainers=True"
	notReady := " | Ready=False ContainersNotReady | ContainersReady=False ContainersNotReady | PodScheduled=True"
	for _, tt := range []struct {
		name string
		pod  *corev1.Pod
		o    Observation
		want string
	}{
		{"new", simple("Always"), Observation{}, "Pending  | a ~ContainerCreating | PodReadyToStartContainers=False" + good + notReady},
		{"creating", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": busy}}, "Pending  | a ~ContainerCreating | " + fresh + good + notReady},
		{"pull fails", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": pull}}, "Pending  | a ~ErrImagePull | " + fresh + good + notReady},
		{"ready", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": up}}, "Running  | a running+ | " + fresh + good + " | Ready=True | ContainersReady=True | PodScheduled=True"},
		{"not ready", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": unready}}, "Running  | a running | " + fresh + good + notReady},
		{"crash loop", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": loop}}, "Running  | a ~CrashLoopBackOff last Error | " + fresh + good + notReady},
		{"restarting", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": again}}, "Running  | a ~ContainerCreating last Error | " + fresh + good + notReady},
		{"just ended", simple("Always"), Observation{Sandbox: true, Containers: map[string]Container{"a": err}}, "Running  | a Error | " + fresh + good + notReady},
		{"succeeded", simple("Never"), Observation{Finished: true, Containers: map[string]Container{"a": done}}, "Succeeded  | a Completed | PodReadyToStartContainers=False | Initialized=True PodCompleted | Ready=False PodCompleted | ContainersReady=False PodCompleted | PodScheduled=True"},
		{"failed", simple("Never"), Observation{Finished: true, Containers: map[string]Container{"a": err}}, "Failed  | a Error | PodReadyToStartContainers=False" + good + " | Ready=False PodFailed | ContainersReady=False PodFailed | PodScheduled=True"},
		{"on failure, again", simple("OnFailure"), Observation{Sandbox: true, Containers: map[string]Container{"a": loop}}, "Running  | a ~CrashLoopBackOff last Error | " + fresh + good + notReady},
		{"on failure, done", simple("OnFailure"), Observation{Finished: true, Containers: map[string]Container{"a": done}}, "Succeeded  | a Completed | PodReadyToStartContainers=False | Initialized=True PodCompleted | Ready=False PodCompleted | ContainersReady=False PodCompleted | PodScheduled=True"},
		{"evicted", simple("Always"), Observation{Finished: true, Containers: map[string]Container{"a": stopped}, Verdict: &Verdict{Reason: "Evicted"}}, "Failed Evicted | a  | PodReadyToStartContainers=False" + good + " | Ready=False PodFailed | ContainersReady=False PodFailed | PodScheduled=True"},
		{"initializing", testPod("Always"), Observation{Sandbox: true, Containers: map[string]Container{"i1": done, "s": slow}},
			"Pending  | i1 Completed+ | s running | i2 ~PodInitializing | a ~PodInitializing | b ~PodInitializing | e ~PodInitializing | " + fresh + " | Initialized=False ContainersNotInitialized" + notReady},
		{"init fails", testPod("Always"), Observation{Sandbox: true, Containers: map[string]Container{"i1": loop}},
			"Pending  | i1 ~CrashLoopBackOff last Error | s ~PodInitializing | i2 ~PodInitializing | a ~PodInitializing | b ~PodInitializing | e ~PodInitializing | " + fresh + " | Initialized=False ContainersNotInitialized" + notReady},
		{"all of it", testPod("Always"), Observation{Sandbox: true, Containers: map[string]Container{"i1": done, "s": up, "i2": done, "a": up, "b": up, "e": up}},
			"Running  | i1 Completed+ | s running+ | i2 Completed+ | a running+ | b running+ | e running | " + fresh + good + " | Ready=True | ContainersReady=True | PodScheduled=True"},
		{"sidecar restarts", testPod("Always"), Observation{Sandbox: true, Containers: map[string]Container{"i1": done, "s": loop, "i2": done, "a": up, "b": up}},
			"Running  | i1 Completed+ | s ~CrashLoopBackOff last Error | i2 Completed+ | a running+ | b running+ | e ~PodInitializing | " + fresh + good + notReady},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Now = time.Unix(1000, 0)
			if got := line(Status(tt.pod, &corev1.PodStatus{}, tt.o)); got != tt.want {
				t.Errorf("got\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

func TestStatusRemembers(t *testing.T) {
	p := testPod("Always")
	p.Spec.InitContainers, p.Spec.EphemeralContainers = nil, nil
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	first, second := time.Unix(1000, 0), time.Unix(2000, 0)
	o := Observation{IP: "10.0.0.1", HostIP: "10.0.0.2", Sandbox: true, StartTime: first, Now: first, Containers: map[string]Container{"a": up, "b": up}}
	s := Status(p, &corev1.PodStatus{}, o)
	c := find(s.Conditions, corev1.PodReady)
	if c.Reason != "ReadinessGatesNotReady" || c.Message != `corresponding condition of pod readiness gate "gate" does not exist.` {
		t.Errorf("condition is %+v", c)
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: "gate", Status: "True"}}
	o.Now, o.IP, o.Sandbox = second, "", false
	s2 := Status(p, &s, o)
	if s2.PodIP != "10.0.0.1" || !s2.StartTime.Time.Equal(first) || find(s2.Conditions, "gate") == nil {
		t.Errorf("status is %+v", s2)
	}
	if at := find(s2.Conditions, corev1.ContainersReady).LastTransitionTime; !at.Time.Equal(first) {
		t.Errorf("containers are ready since %s", at)
	}
	if c := find(s2.Conditions, corev1.PodReady); c.Status != "True" || !c.LastTransitionTime.Time.Equal(second) {
		t.Errorf("condition is %+v", c)
	}
	gone := corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "m"}
	if s := Status(p, &gone, o); s.Phase != corev1.PodFailed || s.Reason != "Evicted" || s.Message != "m" {
		t.Errorf("a pod that had failed is %+v", s)
	}
	if got := (metav1.Time{Time: first}); !s.StartTime.Equal(&got) {
		t.Errorf("start time is %v", s.StartTime)
	}
}
