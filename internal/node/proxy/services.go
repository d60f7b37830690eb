// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sonagi/sonagi/internal/node/network"
)

// proxyNameLabel hands a Service to another proxy.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// ports turns a Service and its EndpointSlices into what the network
// forwards, one for each port. A Service that has no address has none.
func ports(svc *corev1.Service, parts []*discoveryv1.EndpointSlice, node string) []network.Service {
	clusterIP, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Labels[proxyNameLabel] != "" {
		return nil
	}
	if svc.Spec.InternalTrafficPolicy == nil || *svc.Spec.InternalTrafficPolicy != corev1.ServiceInternalTrafficPolicyLocal {
		node = ""
	}
	var all []network.Service
	for _, p := range svc.Spec.Ports {
		proto, ok := protocol(p.Protocol)
		if !ok {
			continue
		}
		all = append(all, network.Service{
			Name:        svc.Namespace + "/" + svc.Name + ":" + p.Name,
			ClusterIP:   clusterIP,
			ExternalIPs: externalIPs(svc),
			NodePort:    uint16(p.NodePort),
			Proto:       proto,
			Port:        uint16(p.Port),
			Affinity:    affinity(svc),
			Endpoints:   endpoints(parts, p, node),
		})
	}
	return all
}

func protocol(p corev1.Protocol) (network.Proto, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return network.TCP, true
	case corev1.ProtocolUDP:
		return network.UDP, true
	}
	return 0, false
}

// externalIPs are the addresses outside the service network that lead to the
// Service. A load balancer that works as a proxy of its own is left out.
func externalIPs(svc *corev1.Service) []netip.Addr {
	var addrs []netip.Addr
	add := func(text string) {
		if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	for _, text := range svc.Spec.ExternalIPs {
		add(text)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
				add(in.IP)
			}
		}
	}
	return addrs
}

func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := int32(corev1.DefaultClientIPServiceAffinitySeconds)
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// endpoints are those that are ready; if there is none, those that still
// serve while they end, so that the last pods of a Service that is being
// replaced lose no connection. node, if not empty, leaves out those elsewhere.
func endpoints(parts []*discoveryv1.EndpointSlice, port corev1.ServicePort, node string) []netip.AddrPort {
	var ready, ending []netip.AddrPort
	for _, part := range parts {
		number, ok := portNumber(part, port)
		if !ok || part.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for _, e := range part.Endpoints {
			elsewhere := node != "" && (e.NodeName == nil || *e.NodeName != node)
			if elsewhere || len(e.Addresses) == 0 {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0]) // all others stand for the same
			if err != nil {
				continue
			}
			switch c := e.Conditions; {
			case isTrue(c.Ready, true):
				ready = append(ready, netip.AddrPortFrom(addr, number))
			case isTrue(c.Serving, false) && isTrue(c.Terminating, false):
				ending = append(ending, netip.AddrPortFrom(addr, number))
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return ending
}

// portNumber is the number behind the port's name in this slice.
func portNumber(part *discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	for _, p := range part.Ports {
		sameName := p.Name == nil && port.Name == "" || p.Name != nil && *p.Name == port.Name
		want := port.Protocol
		if want == "" {
			want = corev1.ProtocolTCP
		}
		if sameName && p.Port != nil && (p.Protocol == nil && want == corev1.ProtocolTCP || p.Protocol != nil && *p.Protocol == want) {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}
