// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sonagi/sonagi/internal/node/network"
)

func ptr[T any](v T) *T { return &v }

func web(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x"}}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.43.0.5",
			Ports:     []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

type state struct{ ready, serving, terminating *bool }

func slice(name string, states map[string]state) *discoveryv1.EndpointSlice {
	part := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(8080))}},
	}
	for _, ip := range slices.Sorted(maps.Keys(states)) {
		s := states[ip]
		part.Endpoints = append(part.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, NodeName: ptr("here"),
			Conditions: discoveryv1.EndpointConditions{Ready: s.ready, Serving: s.serving, Terminating: s.terminating},
		})
	}
	return part
}

var (
	unset   = state{}
	ready   = state{ptr(true), ptr(true), ptr(false)}
	unready = state{ptr(false), ptr(false), ptr(false)}
	ending  = state{ptr(false), ptr(true), ptr(true)}
	ended   = state{ptr(false), ptr(false), ptr(true)}
)

func TestEndpoints(t *testing.T) {
	for _, tt := range []struct {
		name   string
		states map[string]state
		want   string
	}{
		{"ready ones", map[string]state{"10.42.0.2": ready, "10.42.0.3": unready}, "[10.42.0.2:8080]"},
		{"no condition means ready", map[string]state{"10.42.0.2": unset}, "[10.42.0.2:8080]"},
		{"ending ones are left out", map[string]state{"10.42.0.2": ready, "10.42.0.3": ending}, "[10.42.0.2:8080]"},
		{"ending ones are better than none", map[string]state{"10.42.0.2": unready, "10.42.0.3": ending, "10.42.0.4": ended}, "[10.42.0.3:8080]"},
		{"none", map[string]state{"10.42.0.2": unready, "10.42.0.3": ended}, "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ports(web(nil), []*discoveryv1.EndpointSlice{slice("a", tt.states)}, "here")
			if fmt.Sprint(got[0].Endpoints) != tt.want {
				t.Errorf("got %v, want %s", got[0].Endpoints, tt.want)
			}
		})
	}
}

func TestPorts(t *testing.T) {
	vip := netip.MustParseAddr("10.43.0.5")
	plain := network.Service{Name: "ns/web:http", ClusterIP: vip, Proto: network.TCP, Port: 80, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.42.0.2:8080")}}
	with := func(change func(*network.Service)) []network.Service {
		s := plain
		change(&s)
		return []network.Service{s}
	}
	for _, tt := range []struct {
		name   string
		change func(*corev1.Service)
		want   []network.Service
	}{
		{"cluster address", nil, []network.Service{plain}},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, nil},
		{"not yet allocated", func(s *corev1.Service) { s.Spec.ClusterIP = "" }, nil},
		{"external name", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil},
		{"another proxy's", func(s *corev1.Service) { s.Labels = map[string]string{proxyNameLabel: "other"} }, nil},
		{"node port", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30080 }, with(func(s *network.Service) { s.NodePort = 30080 })},
		{"no protocol is TCP", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "" }, []network.Service{plain}},
		{"SCTP", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP }, nil},
		{"another protocol's port", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP },
			with(func(s *network.Service) { s.Proto, s.Endpoints = network.UDP, nil })},
		{"another port's name", func(s *corev1.Service) { s.Spec.Ports[0].Name = "grpc" },
			with(func(s *network.Service) { s.Name, s.Endpoints = "ns/web:grpc", nil })},
		{"affinity", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP },
			with(func(s *network.Service) { s.Affinity = 3 * time.Hour })},
		{"affinity's time", func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(5))}}
		}, with(func(s *network.Service) { s.Affinity = 5 * time.Second })},
		{"load balancer", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.ExternalIPs = []string{"192.0.2.1", "x"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
				{IP: "192.0.2.2"}, {IP: "192.0.2.1"}, {IP: "192.0.2.3", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb"},
			}
		}, with(func(s *network.Service) {
			s.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
		})},
		{"local only", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) },
			with(func(s *network.Service) { s.Endpoints = nil })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ports(web(tt.change), []*discoveryv1.EndpointSlice{slice("a", map[string]state{"10.42.0.2": ready})}, "elsewhere")
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// A kernel notes what it was told, and may fail.
type kernel struct {
	mu    sync.Mutex
	have  map[string]network.Service
	fail  int
	calls int
	told  chan struct{}
}

func (k *kernel) Program(_ context.Context, all []network.Service) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if k.fail > 0 {
		k.fail--
		return errors.New("no")
	}
	k.have = map[string]network.Service{}
	for _, s := range all {
		k.have[s.Name] = s
	}
	return nil
}

func (k *kernel) Update(_ context.Context, changed []network.Service, gone []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range gone {
		delete(k.have, name)
	}
	for _, s := range changed {
		k.have[s.Name] = s
	}
	select {
	case k.told <- struct{}{}:
	default:
	}
	return nil
}

func (k *kernel) await(t *testing.T, what string, ok func(map[string]network.Service) bool) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		k.mu.Lock()
		done := ok(k.have)
		k.mu.Unlock()
		if done {
			return
		}
		select {
		case <-k.told:
		case <-limit:
			t.Fatalf("%s: have %v", what, k.have)
		}
	}
}

func TestFollowsTheAPI(t *testing.T) {
	client := fake.NewClientset(web(nil), slice("a", map[string]state{"10.42.0.2": ready}))
	k := &kernel{told: make(chan struct{}, 1), fail: 1}
	p, err := New(Options{Informers: informers.NewSharedInformerFactory(client, 0), Network: k, NodeName: "here"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	task := p.Task()
	go func() { ended <- task.Run(ctx) }()
	if err := task.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if k.calls != 2 || len(k.have["ns/web:http"].Endpoints) != 1 {
		t.Errorf("after %d calls: %v", k.calls, k.have)
	}
	endpoints := client.DiscoveryV1().EndpointSlices("ns")
	if _, err := endpoints.Create(ctx, slice("b", map[string]state{"10.42.0.3": ready}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "second endpoint", func(have map[string]network.Service) bool { return len(have["ns/web:http"].Endpoints) == 2 })
	if err := endpoints.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "first endpoint gone", func(have map[string]network.Service) bool { return len(have["ns/web:http"].Endpoints) == 1 })
	renamed := web(func(s *corev1.Service) { s.Spec.Ports[0].Name = "https" })
	if _, err := client.CoreV1().Services("ns").Update(ctx, renamed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "port renamed", func(have map[string]network.Service) bool {
		_, old := have["ns/web:http"]
		_, now := have["ns/web:https"]
		return now && !old
	})
	if err := client.CoreV1().Services("ns").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "service gone", func(have map[string]network.Service) bool { return len(have) == 0 })
	for _, obj := range p.slices.GetStore().List() {
		if len(obj.(*discoveryv1.EndpointSlice).ManagedFields) > 0 {
			t.Error("managed fields are kept")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
