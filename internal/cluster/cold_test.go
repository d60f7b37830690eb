// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// TestColdPath measures the control plane's part of a cold start, as a node
// sees it: from the change of a Deployment's scale to the pod that is bound.
// Every step is an event, so the sum has to stay far below the shortest timer.
func TestColdPath(t *testing.T) {
	if os.Getenv("SONAGI_MEASURE") == "" {
		t.Skip("a measurement, which fails on nothing: set SONAGI_MEASURE=1 to have it printed")
	}
	p := start(t, t.TempDir(), freePort(t))
	client := kubernetes.NewForConfigOrDie(p.config(t))
	ctx := t.Context()
	readyNode(t, client, "one")
	deploy(t, client, "web", 0)
	events := follow(t, client)

	const rounds = 40
	var stages [4][]time.Duration
	for range rounds {
		begun := time.Now()
		scale(t, client, "web", 1)
		patched := time.Now()
		replicas := await(t, events, func(e event) bool { return e.replicaSet != nil && *e.replicaSet.Spec.Replicas == 1 })
		created := await(t, events, func(e event) bool { return e.pod != nil && e.kind == watch.Added })
		bound := await(t, events, func(e event) bool { return e.pod != nil && e.pod.Spec.NodeName != "" })
		for i, at := range []time.Time{patched, replicas.at, created.at, bound.at} {
			stages[i] = append(stages[i], at.Sub(begun))
		}
		scale(t, client, "web", 0)
		await(t, events, func(e event) bool { return e.pod != nil && e.pod.DeletionTimestamp != nil })
		now := int64(0)
		if err := client.CoreV1().Pods("default").Delete(ctx, bound.pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		await(t, events, func(e event) bool { return e.pod != nil && e.kind == watch.Deleted })
		eventually(t, "the deployment is at zero", func(ctx context.Context) (bool, error) {
			d, err := client.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
			return err == nil && d.Status.Replicas == 0 && d.Status.ObservedGeneration == d.Generation, err
		})
	}
	for i, name := range []string{"patched", "replica set scaled", "pod created", "pod bound"} {
		slices.Sort(stages[i])
		t.Logf("%-20s p50 %v  p90 %v  max %v", name, stages[i][rounds/2].Round(10*time.Microsecond),
			stages[i][rounds*9/10].Round(10*time.Microsecond), stages[i][rounds-1].Round(10*time.Microsecond))
	}
}

type event struct {
	at         time.Time
	kind       watch.EventType
	pod        *corev1.Pod
	replicaSet *appsv1.ReplicaSet
}

// follow watches pods and replica sets of the default namespace.
func follow(t *testing.T, client kubernetes.Interface) <-chan event {
	t.Helper()
	pods, err := client.CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sets, err := client.AppsV1().ReplicaSets("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan event, 1000)
	go func() {
		for e := range pods.ResultChan() {
			pod, _ := e.Object.(*corev1.Pod)
			events <- event{at: time.Now(), kind: e.Type, pod: pod}
		}
	}()
	go func() {
		for e := range sets.ResultChan() {
			set, _ := e.Object.(*appsv1.ReplicaSet)
			events <- event{at: time.Now(), kind: e.Type, replicaSet: set}
		}
	}()
	return events
}

func await(t *testing.T, events <-chan event, wanted func(event) bool) event {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case e := <-events:
			if wanted(e) {
				return e
			}
		case <-deadline:
			t.Fatal("waited in vain")
		}
	}
}

func scale(t *testing.T, client kubernetes.Interface, name string, replicas int) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if _, err := client.AppsV1().Deployments("default").Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// readyNode plays the node agent's registration.
func readyNode(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	ctx := t.Context()
	_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{corev1.LabelHostname: name},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const status = `{"status":{
		"capacity":{"cpu":"4","memory":"8Gi","pods":"110"},
		"allocatable":{"cpu":"4","memory":"8Gi","pods":"110"},
		"conditions":[{"type":"Ready","status":"True","reason":"Test","message":"played"}]}}`
	if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is untainted", func(ctx context.Context) (bool, error) {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err == nil && len(node.Spec.Taints) == 0, err
	})
}

func deploy(t *testing.T, client kubernetes.Interface, name string, replicas int32) {
	t.Helper()
	labels := map[string]string{"app": name}
	_, err := client.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.test/none"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deployment is observed", func(ctx context.Context) (bool, error) {
		d, err := client.AppsV1().Deployments("default").Get(ctx, name, metav1.GetOptions{})
		return err == nil && d.Status.ObservedGeneration > 0, err
	})
}

// eventually waits for a state that no single event stands for.
func eventually(t *testing.T, what string, holds func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds(ctx)
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited for %s in vain: %v", what, err)
		}
	}
}
