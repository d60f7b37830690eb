// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// playNode gives pods the status that a node would, until the test ends: an image called
// crash ends with code 3, unschedulable finds no node, never does not start; all others are
// ready at once.
func playNode(t testing.TB, p *plane) {
	t.Helper()
	k, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	w, err := k.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			if pod, ok := e.Object.(*corev1.Pod); ok && e.Type == "ADDED" && pod.DeletionTimestamp == nil {
				played(pod)
				_, _ = k.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
			}
		}
	}()
}

func played(pod *corev1.Pod) {
	now := metav1.NewTime(time.Now())
	c := pod.Spec.Containers[0]
	status := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: now}
	}
	switch {
	case strings.Contains(c.Image, "unschedulable"):
		pod.Status.Phase = corev1.PodPending
		pod.Status.Conditions = []corev1.PodCondition{condition(corev1.PodScheduled, corev1.ConditionFalse, "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.")}
	case strings.Contains(c.Image, "crash"):
		pod.Status.Phase = corev1.PodRunning
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 3, Message: "no such table: users"}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
		pod.Status.Conditions = []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionFalse, "ContainersNotReady", "")}
	case strings.Contains(c.Image, "never"):
		pod.Status.Phase = corev1.PodPending
	default:
		pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, "10.42.0.99"
		status.Ready, status.State.Running = true, &corev1.ContainerStateRunning{StartedAt: now}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
		pod.Status.Conditions = []corev1.PodCondition{
			condition(corev1.ContainersReady, corev1.ConditionTrue, "", ""), condition(corev1.PodReady, corev1.ConditionTrue, "", "")}
	}
}
