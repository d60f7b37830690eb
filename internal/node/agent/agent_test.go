// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestPodRuns(t *testing.T) {
	r := newRig(t)
	begun := time.Now()
	p := r.apply(`
metadata: {name: web}
spec:
  containers:
  - name: app
    command: [httpd, -f, -p, "8080", -h, /etc]
    readinessProbe: {tcpSocket: {port: 8080}}
`)
	e := r.awaitEndpoint("web", "ready", func(e PodEndpoint) bool { return e.Ready })
	t.Logf("ready after %s", time.Since(begun))
	if !e.IP.IsValid() || e.UID != p.UID {
		t.Errorf("endpoint is %+v", e)
	}
	p = r.awaitReady("web")
	if p.Status.PodIP != e.IP.String() || p.Status.Phase != corev1.PodRunning || p.Status.StartTime == nil {
		t.Errorf("status is %+v", p.Status)
	}
	for _, text := range []string{"Pulled: Container image", "Created: Container created", "Started: Container started"} {
		r.awaitEvent("web", text)
	}
	if got := r.exec(p, "app", "cat /etc/hosts; hostname; cat /etc/resolv.conf"); !strings.Contains(got, e.IP.String()+"\tweb") ||
		!strings.Contains(got, "nameserver 10.43.0.10") || !strings.Contains(got, "search default.svc.cluster.local svc.cluster.local cluster.local") {
		t.Errorf("files are:\n%s", got)
	}
	r.delete("web", 1)
	r.awaitEndpoint("web", "terminating", func(e PodEndpoint) bool { return e.Terminating })
	r.awaitGone("web")
	r.awaitEvent("web", "Killing: Stopping container app")
}

func TestDrains(t *testing.T) {
	begun, release := make(chan PodEndpoint, 1), make(chan struct{})
	r := newRig(t, func(o *Options) {
		o.Drained = func(ctx context.Context, e PodEndpoint) {
			begun <- e
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
	})
	const text = `
metadata: {name: web}
spec:
  containers: [{name: app, command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]}]
`
	r.apply(text)
	r.awaitEndpoint("web", "ready", func(e PodEndpoint) bool { return e.Ready })
	p := r.awaitReady("web")
	r.delete("web", 30)
	if e := <-begun; !e.Terminating || e.Name != "web" {
		t.Errorf("drained is %+v", e)
	}
	<-time.After(300 * time.Millisecond)
	if got := r.exec(p, "app", "echo here"); got != "here\n" {
		t.Errorf("the container says %q", got)
	}
	close(release)
	r.awaitGone("web")

	// Requests that do not end are not waited for longer than the pod has.
	release = make(chan struct{})
	r.apply(text)
	r.awaitReady("web")
	r.delete("web", 1)
	<-begun
	r.awaitGone("web")
}
