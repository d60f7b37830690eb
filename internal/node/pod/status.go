// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// An Observation is all that a pod's status is made from.
type Observation struct {
	Containers map[string]Container
	IP         string // of the pod; empty before it has a sandbox
	HostIP     string
	Sandbox    bool // the pod has a sandbox now
	Finished   bool // nothing of the pod will run again
	StartTime  time.Time
	Now        time.Time

	// A verdict from outside the containers: evicted, past its deadline,
	// rejected. The phase is then Failed whatever the containers say.
	Verdict *Verdict
}

// A Verdict ends a pod for a reason its containers do not know.
type Verdict struct {
	Reason    string
	Message   string
	Condition *corev1.PodCondition // DisruptionTarget, for an eviction
}

// Scheme is the prefix of the container IDs in a pod's status.
const Scheme = "sonagi://"

// Status is the status to report. old is the status reported last: times of
// transition, and words that others wrote, are taken from it.
func Status(p *corev1.Pod, old *corev1.PodStatus, o Observation) corev1.PodStatus {
	s := corev1.PodStatus{
		ObservedGeneration: p.Generation,
		QOSClass:           QOS(p),
		NominatedNodeName:  old.NominatedNodeName,
		Resize:             old.Resize,

		ResourceClaimStatuses:       old.ResourceClaimStatuses,
		ExtendedResourceClaimStatus: old.ExtendedResourceClaimStatus,
	}
	addresses(&s, p, old, o)
	if !o.StartTime.IsZero() {
		t := metav1.NewTime(o.StartTime).Rfc3339Copy()
		s.StartTime = &t
	}
	if old.StartTime != nil {
		s.StartTime = old.StartTime
	}
	s.InitContainerStatuses = containerStatuses(p, o, Init)
	s.ContainerStatuses = containerStatuses(p, o, App)
	s.EphemeralContainerStatuses = containerStatuses(p, o, Ephemeral)
	s.Phase = phase(p, o)
	switch {
	case o.Verdict != nil:
		s.Phase, s.Reason, s.Message = corev1.PodFailed, o.Verdict.Reason, o.Verdict.Message
	case Terminal(old.Phase):
		s.Phase, s.Reason, s.Message = old.Phase, old.Reason, old.Message
	case s.Phase == old.Phase:
		s.Reason, s.Message = old.Reason, old.Message
	}
	s.Conditions = conditions(p, old, &s, o)
	return s
}

func addresses(s *corev1.PodStatus, p *corev1.Pod, old *corev1.PodStatus, o Observation) {
	if o.HostIP != "" {
		s.HostIP = o.HostIP
		s.HostIPs = []corev1.HostIP{{IP: o.HostIP}}
	}
	ip := o.IP
	if ip == "" && p.Spec.HostNetwork {
		ip = o.HostIP
	}
	if ip == "" {
		ip = old.PodIP // a pod that has ended keeps the address it had
	}
	if ip != "" {
		s.PodIP = ip
		s.PodIPs = []corev1.PodIP{{IP: ip}}
	}
}

// containerStatuses are those of init containers (with sidecars), app
// containers or ephemeral ones.
func containerStatuses(p *corev1.Pod, o Observation, group Kind) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for _, m := range Members(p) {
		in := m.Kind
		if in == Sidecar {
			in = Init
		}
		if in == group {
			out = append(out, containerStatus(p, m, o))
		}
	}
	if group != Init {
		slices.SortFunc(out, func(a, b corev1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

func containerStatus(p *corev1.Pod, m Member, o Observation) corev1.ContainerStatus {
	c := o.Containers[m.Spec.Name]
	s := corev1.ContainerStatus{
		Name:         m.Spec.Name,
		Image:        m.Spec.Image,
		RestartCount: int32(c.Attempt),
		VolumeMounts: mountStatuses(m.Spec),
	}
	if c.ID != "" {
		s.ContainerID = Scheme + c.ID
		s.ImageID = c.ImageID
		if c.Image != "" {
			s.Image = c.Image
		}
		if c.User != nil {
			s.User = &corev1.ContainerUser{Linux: c.User}
		}
		s.AllocatedResources = m.Spec.Resources.Requests
		s.Resources = m.Spec.Resources.DeepCopy()
	}
	if c.Last != nil {
		s.LastTerminationState.Terminated = c.Last
	}
	s.State = containerState(p, m, c, o.Finished)
	if s.State.Waiting != nil && c.Phase == Exited {
		s.LastTerminationState = corev1.ContainerState{Terminated: Terminated(c)}
	}
	s.Ready, s.Started = readiness(m, c)
	return s
}

func containerState(p *corev1.Pod, m Member, c Container, finished bool) corev1.ContainerState {
	switch c.Phase {
	case Running:
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.StartedAt)}}
	case Exited:
		again := !finished && ShouldRestart(p, m.Kind, m.Spec, c.ExitCode)
		if c.Waiting == nil || !again {
			return corev1.ContainerState{Terminated: Terminated(c)}
		}
	}
	if c.Waiting != nil {
		return corev1.ContainerState{Waiting: c.Waiting}
	}
	reason := "ContainerCreating"
	if len(p.Spec.InitContainers) > 0 {
		reason = "PodInitializing"
	}
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

// Terminated is the end of a container as the API tells it.
func Terminated(c Container) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode:   c.ExitCode,
		Reason:     c.Reason,
		Message:    c.Message,
		StartedAt:  metav1.NewTime(c.StartedAt),
		FinishedAt: metav1.NewTime(c.FinishedAt),
	}
	if c.ID != "" {
		t.ContainerID = Scheme + c.ID
	}
	return t
}

// Lost is the end of a container that was running when it was last heard of
// and that nobody can find.
func Lost() *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode: 137,
		Reason:   "ContainerStatusUnknown",
		Message:  "The container could not be located when the pod was deleted.  The container used to be Running",
	}
}

func readiness(m Member, c Container) (ready bool, started *bool) {
	yes := c.Phase == Running && c.Started
	switch m.Kind {
	case Init:
		return c.Phase == Exited && c.ExitCode == 0, &yes
	case Ephemeral:
		return false, nil
	default:
		return yes && c.Ready, &yes
	}
}

func mountStatuses(c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// phase sums the containers up.
func phase(p *corev1.Pod, o Observation) corev1.PodPhase {
	var pending, failed, waiting, running, stopped, succeeded, final int
	ran := slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool { return o.Containers[c.Name].Ever })
	for _, m := range Members(p) {
		c := o.Containers[m.Spec.Name]
		again := c.Phase == Exited && ShouldRestart(p, m.Kind, m.Spec, c.ExitCode)
		switch {
		case m.Kind == Ephemeral:
		case m.Kind == Init:
			switch {
			case ran || c.Phase == Exited && c.ExitCode == 0:
			case c.Phase == Exited && !again:
				failed++
			case c.Phase != Exited && c.Last == nil:
				pending++
			}
		case m.Kind == Sidecar:
			switch {
			case c.Phase == Running:
				running++
				if !c.Started && !ran {
					pending++
				}
			case !c.Ever && !ran:
				pending++
			}
		case c.Phase == Running:
			running++
		case c.Phase == Exited:
			stopped++
			if c.ExitCode == 0 {
				succeeded++
			}
			if !again {
				final++
			}
		case c.Last != nil: // between two attempts
			stopped++
		default:
			waiting++
		}
	}
	switch {
	case failed > 0:
		return corev1.PodFailed
	case pending > 0 || waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case stopped == 0:
		return corev1.PodPending
	case !o.Finished && final < stopped:
		return corev1.PodRunning // all are between two attempts
	case succeeded == stopped:
		return corev1.PodSucceeded
	default:
		return corev1.PodFailed
	}
}

// owned are the conditions that are ours to write.
var owned = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
}

func conditions(p *corev1.Pod, old *corev1.PodStatus, s *corev1.PodStatus, o Observation) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range p.Status.Conditions {
		if !slices.Contains(owned, c.Type) {
			out = append(out, c)
		}
	}
	if o.Verdict != nil && o.Verdict.Condition != nil {
		out = upsert(out, *o.Verdict.Condition)
	} else if c := find(old.Conditions, corev1.DisruptionTarget); c != nil {
		out = upsert(out, *c)
	}
	all := append(slices.Clone(s.InitContainerStatuses), s.ContainerStatuses...)
	containers := containersReady(p, all, s.Phase)
	for _, c := range []corev1.PodCondition{
		truth(corev1.PodReadyToStartContainers, o.Sandbox),
		initialized(p, all, s.Phase),
		ready(p, containers, out),
		containers,
		truth(corev1.PodScheduled, true),
	} {
		c.ObservedGeneration = p.Generation
		c.LastTransitionTime = metav1.NewTime(o.Now).Rfc3339Copy()
		if before := find(old.Conditions, c.Type); before != nil && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
		out = append(out, c)
	}
	return out
}

func truth(t corev1.PodConditionType, yes bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse}
	if yes {
		c.Status = corev1.ConditionTrue
	}
	return c
}

func no(t corev1.PodConditionType, reason, message string) corev1.PodCondition {
	return corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message}
}

func find(all []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range all {
		if all[i].Type == t {
			return &all[i]
		}
	}
	return nil
}

func upsert(all []corev1.PodCondition, c corev1.PodCondition) []corev1.PodCondition {
	if have := find(all, c.Type); have != nil {
		*have = c
		return all
	}
	return append(all, c)
}

func containersReady(p *corev1.Pod, all []corev1.ContainerStatus, phase corev1.PodPhase) corev1.PodCondition {
	switch phase {
	case corev1.PodSucceeded:
		return no(corev1.ContainersReady, "PodCompleted", "")
	case corev1.PodFailed:
		return no(corev1.ContainersReady, "PodFailed", "")
	}
	var unready []string
	for _, m := range Members(p) {
		if m.Kind != App && m.Kind != Sidecar {
			continue
		}
		if i := slices.IndexFunc(all, func(s corev1.ContainerStatus) bool { return s.Name == m.Spec.Name }); i < 0 || !all[i].Ready {
			unready = append(unready, m.Spec.Name)
		}
	}
	if len(unready) > 0 {
		return no(corev1.ContainersReady, "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready))
	}
	return truth(corev1.ContainersReady, true)
}

func ready(p *corev1.Pod, containers corev1.PodCondition, others []corev1.PodCondition) corev1.PodCondition {
	if containers.Status != corev1.ConditionTrue {
		containers.Type = corev1.PodReady
		return containers
	}
	var why []string
	for _, gate := range p.Spec.ReadinessGates {
		c := find(others, gate.ConditionType)
		switch {
		case c == nil:
			why = append(why, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(gate.ConditionType)))
		case c.Status != corev1.ConditionTrue:
			why = append(why, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(gate.ConditionType), c.Status))
		}
	}
	if len(why) > 0 {
		return no(corev1.PodReady, "ReadinessGatesNotReady", strings.Join(why, ", "))
	}
	return truth(corev1.PodReady, true)
}

func initialized(p *corev1.Pod, all []corev1.ContainerStatus, phase corev1.PodPhase) corev1.PodCondition {
	if phase == corev1.PodSucceeded {
		c := truth(corev1.PodInitialized, true)
		c.Reason = "PodCompleted"
		return c
	}
	var incomplete []string
	for _, m := range Members(p) {
		i := slices.IndexFunc(all, func(s corev1.ContainerStatus) bool { return s.Name == m.Spec.Name })
		if i < 0 {
			continue
		}
		s := all[i]
		switch m.Kind {
		case App:
			if s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil {
				return truth(corev1.PodInitialized, true)
			}
		case Sidecar:
			if s.Started == nil || !*s.Started {
				incomplete = append(incomplete, s.Name)
			}
		case Init:
			if !s.Ready {
				incomplete = append(incomplete, s.Name)
			}
		}
	}
	if len(incomplete) > 0 {
		return no(corev1.PodInitialized, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %s", incomplete))
	}
	return truth(corev1.PodInitialized, true)
}

// IsReady reports whether a status says that the pod takes requests.
func IsReady(s *corev1.PodStatus) bool {
	c := find(s.Conditions, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// EndReason is the reason Kubernetes gives for the end of a container.
func EndReason(exit int32, oom bool) string {
	switch {
	case oom:
		return "OOMKilled"
	case exit == 0:
		return "Completed"
	default:
		return "Error"
	}
}
