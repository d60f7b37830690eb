// SPDX-License-Identifier: Apache-2.0

// Package pod says what a pod should look like on this machine.
//
// Everything here is a pure function of API objects and of what was seen of
// the containers: what to start and to stop next, the status to report, the
// environment, the files and the limits of a container. Time is an argument.
package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Kind is the part a container plays in its pod.
type Kind int

// The kinds, in the order in which a pod starts them.
const (
	Ephemeral Kind = iota // added to a running pod for debugging
	Init                  // runs to its end before anything after it
	Sidecar               // an init container that keeps running
	App
)

// A Member is a container of a pod's spec with its kind.
type Member struct {
	Kind Kind
	Spec *corev1.Container
	// Target names the container whose processes an ephemeral container sees.
	Target string
}

// Members lists the containers of a pod: init containers and sidecars in
// order, then app containers, then ephemeral ones.
func Members(p *corev1.Pod) []Member {
	var out []Member
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		kind := Init
		if IsSidecar(c) {
			kind = Sidecar
		}
		out = append(out, Member{Kind: kind, Spec: c})
	}
	for i := range p.Spec.Containers {
		out = append(out, Member{Kind: App, Spec: &p.Spec.Containers[i]})
	}
	for i := range p.Spec.EphemeralContainers {
		e := &p.Spec.EphemeralContainers[i]
		c := corev1.Container(e.EphemeralContainerCommon)
		out = append(out, Member{Kind: Ephemeral, Spec: &c, Target: e.TargetContainerName})
	}
	return out
}

// Find returns the member of that name.
func Find(p *corev1.Pod, name string) (Member, bool) {
	for _, m := range Members(p) {
		if m.Spec.Name == name {
			return m, true
		}
	}
	return Member{}, false
}

// IsSidecar reports whether an init container keeps running beside the app.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Phase is where a container stands in its life.
type Phase int

// The phases. An attempt goes through them once; a restart is a new attempt.
const (
	Absent   Phase = iota // never started, or its start failed
	Starting              // being pulled, created or started
	Running
	Exited
)

// A Container is what is known of one container of a pod.
type Container struct {
	Phase   Phase
	ID      string // of the newest attempt that was created; empty before the first
	Attempt int    // number of the newest attempt, from 0
	Ever    bool   // some attempt has run

	Image   string // as the user wrote it, of the newest attempt
	ImageID string
	User    *corev1.LinuxContainerUser

	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int32
	Signal     int32
	Reason     string // of the end: Completed, Error, OOMKilled, StartError, …
	Message    string

	Last *corev1.ContainerStateTerminated // how the attempt before ended

	Waiting *corev1.ContainerStateWaiting // why it does not run, when there is a reason beyond "not yet"
	RetryAt time.Time                     // not to be started before

	Started bool // past its startup probe and its postStart hook
	Ready   bool // its readiness probe agrees
	Sick    Sick // a reason to stop it
	Busy    bool // being started or stopped: leave it alone
}

// Sick is why a running container has to be replaced.
type Sick string

// The reasons.
const (
	Well             Sick = ""
	FailedLiveness   Sick = "failed liveness probe"
	FailedStartup    Sick = "failed startup probe"
	DefinitionChange Sick = "definition changed"
)

// FullName is how Kubernetes names a pod in messages.
func FullName(p *corev1.Pod) string {
	return p.Name + "_" + p.Namespace + "(" + string(p.UID) + ")"
}

// Terminal reports whether a phase is final.
func Terminal(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}
