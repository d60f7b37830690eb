// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAdopts restarts the agent under running pods: nothing of them is
// restarted, and the data plane knows them again at once.
func TestAdopts(t *testing.T) {
	r := newRig(t)
	r.apply(`
metadata: {name: stays}
spec:
  volumes: [{name: m, emptyDir: {medium: Memory}}, {name: d, emptyDir: {}}]
  containers:
  - name: app
    command: [sh, -c, "echo $$ > /d/pid; echo x > /m/f; exec httpd -f -p 8080 -h /m"]
    volumeMounts: [{name: m, mountPath: /m}, {name: d, mountPath: /d}]
    readinessProbe: {httpGet: {path: /f, port: 8080}}
  - {name: other, command: [sh, -c, "trap 'exit 5' TERM; sleep 1000 & wait"]}
`)
	before := r.awaitReady("stays")
	r.apply(`
metadata: {name: goes}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: app}]
`)
	goes := r.awaitReady("goes")
	r.apply(`
metadata: {name: ends}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [sh, -c, "while [ ! -f /tmp/end ]; do sleep 0.05; done; exit 4"]}]
`)
	ends := r.awaitReady("ends")
	r.stop()

	// While nobody looks, one pod is removed and another ends.
	must(t, r.client.CoreV1().Pods("default").Delete(t.Context(), "goes", metav1.DeleteOptions{}))
	id := strings.TrimPrefix(state(ends, "app").ContainerID, "sonagi://")
	_, _, err := r.agent.execIn(id)(t.Context(), []string{"touch", "/tmp/end"})
	must(t, err)
	eventually(t, func() bool {
		s, err := r.runtime.Status(t.Context(), id)
		return err == nil && s.State == "exited"
	})
	r.mu.Lock()
	r.endpoints = nil
	r.mu.Unlock()

	begun := time.Now()
	r.start()
	e := r.awaitEndpoint("stays", "ready", func(e PodEndpoint) bool { return e.Ready })
	t.Logf("adopted after %s", time.Since(begun))
	if e.IP.String() != before.Status.PodIP {
		t.Errorf("address is %s, was %s", e.IP, before.Status.PodIP)
	}
	after := r.awaitReady("stays")
	for _, name := range []string{"app", "other"} {
		if a, b := state(before, name), state(after, name); a.ContainerID != b.ContainerID || b.RestartCount != 0 || !b.State.Running.StartedAt.Equal(&a.State.Running.StartedAt) {
			t.Errorf("%s was %+v, is %+v", name, a, b)
		}
	}
	if got := r.exec(after, "app", "cat /m/f"); got != "x\n" {
		t.Errorf("memory has %q", got)
	}
	p := r.awaitPhase("ends", corev1.PodFailed)
	if s := state(p, "app").State.Terminated; s == nil || s.ExitCode != 4 {
		t.Errorf("end is %+v", s)
	}
	eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(r.o.Dir, string(goes.UID)))
		all, _ := r.runtime.List(t.Context())
		left := 0
		for _, c := range all {
			if c.Labels[labelUID] == string(goes.UID) {
				left++
			}
		}
		return os.IsNotExist(err) && left == 0
	})

	// What was adopted is looked after: it is probed, its end is seen.
	must(t, r.runtime.Signal(t.Context(), strings.TrimPrefix(state(after, "other").ContainerID, "sonagi://"), syscall.SIGTERM))
	p = r.await("stays", "restarted", func(p *corev1.Pod) bool { return state(p, "other").RestartCount == 1 })
	if e := state(p, "other").LastTerminationState.Terminated; e == nil || e.ExitCode != 5 {
		t.Errorf("last end is %+v", e)
	}
	r.delete("stays", 1)
	r.awaitGone("stays")
}

// TestForgottenContainers starts an agent whose runtime has lost everything,
// as after a power cut: pods run again, with one restart more.
func TestForgottenContainers(t *testing.T) {
	r := newRig(t)
	r.apply(`
metadata: {name: again}
spec:
  containers: [{name: app, readinessProbe: {exec: {command: ["true"]}}}]
`)
	before := r.awaitReady("again")
	r.apply(`
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: app}]
`)
	r.awaitReady("once")
	r.apply(`
metadata: {name: over}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [sh, -c, "echo hi; exit 9"]}]
`)
	r.awaitPhase("over", corev1.PodFailed)
	r.stop()
	all, err := r.runtime.List(t.Context())
	must(t, err)
	for _, c := range all {
		must(t, r.runtime.Delete(t.Context(), c.ID))
	}
	r.start()
	after := r.await("again", "restarted", func(p *corev1.Pod) bool {
		s := state(p, "app")
		return s.RestartCount == 1 && s.State.Running != nil && s.Ready
	})
	if state(after, "app").ContainerID == state(before, "app").ContainerID {
		t.Error("the container is the same")
	}
	if e := state(after, "app").LastTerminationState.Terminated; e == nil || e.Reason != "ContainerStatusUnknown" || e.ExitCode != 137 {
		t.Errorf("last end is %+v", e)
	}
	p := r.awaitPhase("once", corev1.PodFailed)
	if e := state(p, "app").State.Terminated; e == nil || e.ExitCode != 137 {
		t.Errorf("end is %+v", e)
	}
	p = r.pod("over")
	if e := state(p, "app").State.Terminated; e == nil || e.ExitCode != 9 || p.Status.Phase != corev1.PodFailed {
		t.Errorf("what was over is %+v", p.Status)
	}
}

// TestManyPods starts and ends pods side by side.
func TestManyPods(t *testing.T) {
	r := newRig(t)
	const n = 20
	begun := time.Now()
	for i := range n {
		r.apply(fmt.Sprintf(`
metadata: {name: many-%d}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    command: [httpd, -f, -p, "8080", -h, /etc]
    readinessProbe: {tcpSocket: {port: 8080}}
`, i))
	}
	for i := range n {
		r.awaitEndpoint(fmt.Sprintf("many-%d", i), "ready", func(e PodEndpoint) bool { return e.Ready })
	}
	t.Logf("%d pods ready after %s", n, time.Since(begun))
	begun = time.Now()
	for i := range n {
		r.delete(fmt.Sprintf("many-%d", i), 1)
	}
	for i := range n {
		r.awaitGone(fmt.Sprintf("many-%d", i))
	}
	t.Logf("gone after %s", time.Since(begun))
	eventually(t, func() bool { return len(r.agent.all()) == 0 })
}
