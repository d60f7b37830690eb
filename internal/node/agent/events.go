// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/sonagi/sonagi/internal/node/pod"
)

// eventDelay is how long after the fact an event is written: the machine is
// busy starting what the event tells of.
const eventDelay = 300 * time.Millisecond

// newRecorder returns a recorder that writes events a little later, drops what
// is too much, and the function that ends it.
func newRecorder(ctx context.Context, client kubernetes.Interface, node string) (record.EventRecorder, func()) {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&lateSink{ctx: ctx, EventSink: &typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")}})
	return b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: node}), b.Shutdown
}

type lateSink struct {
	ctx context.Context
	record.EventSink
}

// Create writes the event once it is old enough. Events come one at a time and
// in order, so those behind it have waited as well.
func (s *lateSink) Create(e *corev1.Event) (*corev1.Event, error) {
	if wait := eventDelay - time.Since(e.LastTimestamp.Time); wait > 0 {
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
		}
	}
	return s.EventSink.Create(e)
}

// refTo is the pod as an event refers to it; with a container, that part of it.
func refTo(p *corev1.Pod, m *pod.Member) *corev1.ObjectReference {
	ref := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod",
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
	}
	if m == nil {
		return ref
	}
	field := "spec.containers"
	switch m.Kind {
	case pod.Init, pod.Sidecar:
		field = "spec.initContainers"
	case pod.Ephemeral:
		field = "spec.ephemeralContainers"
	}
	ref.FieldPath = field + "{" + m.Spec.Name + "}"
	return ref
}

// warn tells of a pod, or of one container of it, that something is wrong.
func (a *Agent) warn(p *corev1.Pod, m *pod.Member, reason, format string, args ...any) {
	a.recorder.Eventf(refTo(p, m), corev1.EventTypeWarning, reason, format, args...)
}

// note tells of a pod, or of one container of it, what was done.
func (a *Agent) note(p *corev1.Pod, m *pod.Member, reason, format string, args ...any) {
	a.recorder.Eventf(refTo(p, m), corev1.EventTypeNormal, reason, format, args...)
}
