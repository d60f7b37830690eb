// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/proxy"
)

// TestFromAPod asks as a pod does: from its own network, at the service
// address, which the proxy leads to the server on the gateway address.
func TestFromAPod(t *testing.T) {
	needRoot(t)
	o := network.Options{
		Dir: filepath.Join(t.TempDir(), "sandboxes"), LinkPrefix: "dnt",
		PodCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		PoolSize: 1, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	m, err := network.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := network.Purge(o); err != nil {
			t.Error(err)
		}
	})
	pod, err := m.Acquire(t.Context(), "pod", "pod")
	if err != nil {
		t.Fatal(err)
	}

	kube := service("kube-dns", "10.43.0.10",
		corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
		corev1.ServicePort{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53})
	behind := part("kube-dns", endpoint(m.Gateway().String(), "", true))
	behind.Ports = []discoveryv1.EndpointPort{
		{Name: ptr("dns"), Protocol: ptr(corev1.ProtocolUDP), Port: ptr(int32(53))},
		{Name: ptr("dns-tcp"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(53))},
	}
	client := fake.NewClientset(append(objects(), kube, behind)...)
	shared := informers.NewSharedInformerFactory(client, 0)
	s, err := New(Options{
		Informers: shared, Listen: []string{m.Gateway().String() + ":53"},
		Networks: []netip.Prefix{o.PodCIDR, o.ServiceCIDR}, ResolvConf: "/dev/null",
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Options{Informers: shared, Network: m, NodeName: "here", Log: o.Log})
	if err != nil {
		t.Fatal(err)
	}
	runServer(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	task := p.Task()
	go task.Run(ctx)
	if err := task.Ready(ctx); err != nil {
		t.Fatal(err)
	}

	for _, network := range []string{"udp", "tcp"} {
		lookUp(t, pod.NetNS, network, "db-0.db.ns.svc.cluster.local.", "10.42.0.2")
	}
	if dig, err := exec.LookPath("dig"); err == nil {
		for _, flag := range []string{"+notcp", "+tcp"} {
			var out []byte
			err := network.InNetNS(pod.NetNS, func() (err error) {
				out, err = exec.Command(dig, "@10.43.0.10", "+short", flag, "web.ns.svc.cluster.local").CombinedOutput()
				return err
			})
			if got := strings.TrimSpace(string(out)); err != nil || got != "10.43.0.5" {
				t.Errorf("dig %s: %q, %v", flag, got, err)
			}
		}
	}

	// A service that comes is known at once.
	if _, err := client.CoreV1().Services("ns").Create(ctx, service("late", "10.43.0.99"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	limit := time.Now().Add(10 * time.Second)
	for s.zone.directory.service("ns", "late") == nil && time.Now().Before(limit) {
		<-time.After(time.Millisecond)
	}
	lookUp(t, pod.NetNS, "udp", "late.ns.svc.cluster.local.", "10.43.0.99")
}

// lookUp asks with Go's resolver from inside the namespace.
func lookUp(t *testing.T, ns, transport, name, want string) {
	t.Helper()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return network.Dial(ctx, ns, transport, "10.43.0.10:53")
	}}
	got, err := r.LookupHost(t.Context(), name)
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%s by %s: %v, %v", name, transport, got, err)
	}
}
