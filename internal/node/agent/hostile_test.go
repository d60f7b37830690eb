// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/internal/node/podlog"
)

// TestGreedyPods: a pod that takes more than it may harms nobody else.
func TestGreedyPods(t *testing.T) {
	r := newRig(t, func(o *Options) { o.LogMaxBytes, o.LogMaxFiles, o.MaxPodPids = 64<<10, 3, 50 })
	r.apply(`
metadata: {name: neighbour}
spec:
  containers:
  - name: app
    command: [httpd, -f, -p, "8080", -h, /etc]
    readinessProbe: {httpGet: {path: /group, port: 8080}, timeoutSeconds: 5}
`)
	r.awaitReady("neighbour")
	r.apply(`
metadata: {name: disk}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - {name: app, command: [sh, -c, "head -c 3000000 /dev/zero > /v/f; touch /tmp/full; sleep 1000"], volumeMounts: [{name: v, mountPath: /v}], readinessProbe: {exec: {command: [cat, /tmp/full]}}}
`)
	r.apply(`
metadata: {name: root}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    command: [sh, -c, "head -c 3000000 /dev/zero > /tmp/f; touch /tmp/full; sleep 1000"]
    resources: {limits: {ephemeral-storage: 1Mi}}
    readinessProbe: {exec: {command: [cat, /tmp/full]}}
`)
	r.apply(`
metadata: {name: forks}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, command: [sh, -c, "while true; do sleep 1000 & done"]}
`)
	talks := r.apply(`
metadata: {name: talks}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, command: [sh, -c, "seq 1 30000; touch /tmp/full; sleep 1000"], readinessProbe: {exec: {command: [cat, /tmp/full]}}}
`)
	for _, name := range []string{"disk", "root", "talks"} {
		r.awaitReady(name)
	}
	must(t, r.agent.checkStorage(t.Context()))
	p := r.awaitPhase("disk", corev1.PodFailed)
	if p.Status.Reason != "Evicted" || p.Status.Message != `Usage of EmptyDir volume "v" exceeds the limit "1Mi". ` {
		t.Errorf("status is %s: %s", p.Status.Reason, p.Status.Message)
	}
	r.awaitEvent("disk", "Evicted: Usage of EmptyDir volume")
	p = r.awaitPhase("root", corev1.PodFailed)
	if p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.") {
		t.Errorf("status is %s: %s", p.Status.Reason, p.Status.Message)
	}

	path := r.agent.logPath(talks, "app", 0)
	r.agent.rotateLogs(t.Context())
	if old := podlog.Rotated(path); len(old) != 1 {
		t.Errorf("older logs are %v", old)
	}
	r.exec(r.pod("talks"), "app", "echo more > /proc/1/fd/1")
	eventually(t, func() bool {
		var b strings.Builder
		err := podlog.Read(t.Context(), path, podlog.Options{Tail: 2}, &b, &b)
		return err == nil && b.String() == "30000\nmore\n"
	})

	p = r.awaitPhase("forks", corev1.PodFailed)
	if got := r.log(p, "app", 0); !strings.Contains(got, "can't fork: Resource temporarily unavailable") {
		t.Errorf("log is %q", got)
	}
	if p := r.pod("neighbour"); !conditionTrue(&p.Status, corev1.PodReady) || state(p, "app").RestartCount > 0 {
		t.Errorf("the neighbour is %+v", p.Status)
	}
	for _, name := range []string{"forks", "talks", "neighbour"} {
		r.delete(name, 1)
		r.awaitGone(name)
	}
}

// TestNothingIsLeft starts and removes pods with every kind of mount.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t)
	var uids []types.UID
	for range 5 {
		p := r.apply(`
metadata: {name: mounts}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: m, emptyDir: {medium: Memory}}, {name: d, emptyDir: {}}, {name: t, projected: {sources: [{serviceAccountToken: {path: token}}]}}]
  initContainers: [{name: init, command: ["true"]}]
  containers:
  - name: app
    volumeMounts: [{name: m, mountPath: /m}, {name: m, mountPath: /s, subPath: x/y}, {name: d, mountPath: /d}, {name: d, mountPath: /ds, subPath: z}, {name: t, mountPath: /t}]
`)
		uids = append(uids, p.UID)
		r.awaitReady("mounts")
		r.delete("mounts", 0)
		r.awaitGone("mounts")
	}
	eventually(t, func() bool { return len(r.agent.all()) == 0 })
	left, err := r.agent.volumes.Pods()
	must(t, err)
	all, err := r.runtime.List(t.Context())
	must(t, err)
	if len(left) > 0 || len(all) > 0 || len(r.images.Mounts()) > 0 || len(r.network.Sandboxes()) > 0 {
		t.Errorf("left: %v, %v, %v, %v", left, all, r.images.Mounts(), r.network.Sandboxes())
	}
	mounts, err := cgroupMounts()
	must(t, err)
	for _, dir := range mounts {
		for _, uid := range uids {
			eventually(t, func() bool { return firstLine(dir+cgroupParent(uid)+"/cgroup.procs") == "" })
		}
	}
	if n := r.agent.crowd.Load(); n != 0 {
		t.Errorf("%d containers are still waited for", n)
	}
}
