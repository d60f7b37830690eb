// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/network"
)

// A stopwatch notes when the rooms below the agent are called and answer.
type stopwatch struct {
	Containers
	Images
	Network

	mu    sync.Mutex
	marks []mark
}

type mark struct {
	what string
	at   time.Time
}

func (s *stopwatch) mark(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = append(s.marks, mark{what, time.Now()})
}

func (s *stopwatch) Create(ctx context.Context, spec container.Spec) error {
	s.mark("create")
	defer s.mark("created")
	return s.Containers.Create(ctx, spec)
}

func (s *stopwatch) Start(ctx context.Context, id string) (container.Started, error) {
	s.mark("start")
	defer s.mark("started")
	return s.Containers.Start(ctx, id)
}

func (s *stopwatch) Mount(ctx context.Context, img image.Image, key string) (string, string, error) {
	s.mark("mount")
	defer s.mark("mounted")
	return s.Images.Mount(ctx, img, key)
}

func (s *stopwatch) Acquire(ctx context.Context, uid, hostname string) (network.Sandbox, error) {
	s.mark("acquire")
	defer s.mark("acquired")
	return s.Network.Acquire(ctx, uid, hostname)
}

// Status and Usage are in two of the rooms.
func (s *stopwatch) Usage(ctx context.Context, key string) (image.Usage, error) {
	return s.Images.Usage(ctx, key)
}

// BenchmarkColdStart measures from the creation of a bound pod until the data
// plane is told that it is ready, and what of it passes in which room.
func BenchmarkColdStart(b *testing.B) {
	watch := &stopwatch{}
	r := newRig(b, func(o *Options) {
		watch.Containers, watch.Images, watch.Network = o.Containers, o.Images, o.Network
		o.Containers, o.Network = containersOf{watch}, networkOf{watch}
		o.Images = imagesOf{watch}
		o.ClusterDNS = []netip.Addr{netip.MustParseAddr("10.43.0.10")}
	})
	_, err := r.client.CoreV1().ConfigMaps("default").Create(b.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"}}, metav1.CreateOptions{})
	must(b, err)
	times := map[string][]time.Duration{}
	n := 0
	for b.Loop() {
		n++
		name := fmt.Sprintf("cold-%d", n)
		watch.mu.Lock()
		watch.marks = nil
		watch.mu.Unlock()
		begun := time.Now()
		r.apply(fmt.Sprintf(`
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: token, projected: {sources: [{serviceAccountToken: {path: token}}, {configMap: {name: kube-root-ca.crt}}]}}]
  containers:
  - name: app
    command: [httpd, -f, -p, "8080", -h, /etc]
    readinessProbe: {tcpSocket: {port: 8080}}
    volumeMounts: [{name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}]
`, name))
		r.awaitEndpoint(name, "ready", func(e PodEndpoint) bool { return e.Ready })
		ready := time.Since(begun)
		b.StopTimer()
		times["ready"] = append(times["ready"], ready)
		watch.mu.Lock()
		for _, m := range watch.marks {
			times[m.what] = append(times[m.what], m.at.Sub(begun))
		}
		watch.mu.Unlock()
		r.delete(name, 0)
		r.awaitGone(name)
		b.StartTimer()
	}
	for _, what := range []string{"acquire", "acquired", "mount", "mounted", "create", "created", "start", "started", "ready"} {
		all := times[what]
		slices.Sort(all)
		if len(all) > 0 {
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), what+"-µs")
		}
	}
}

type containersOf struct{ *stopwatch }

func (c containersOf) Status(ctx context.Context, id string) (container.Status, error) {
	return c.Containers.Status(ctx, id)
}

func (c containersOf) List(ctx context.Context) ([]container.Status, error) {
	return c.Containers.List(ctx)
}

type imagesOf struct{ *stopwatch }

func (i imagesOf) List() []image.Image { return i.Images.List() }

type networkOf struct{ *stopwatch }
