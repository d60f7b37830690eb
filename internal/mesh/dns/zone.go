// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// schemaVersion is that of the naming rules of Kubernetes that are followed.
const schemaVersion = "1.1.0"

// An answer is what is said about one name.
type answer struct {
	rcode     int
	answer    []dns.RR
	extra     []dns.RR
	authority []dns.RR
}

// A zone answers the names of the cluster.
type zone struct {
	domain    string // "cluster.local."
	directory directory
	networks  []netip.Prefix
}

// answer answers the question if its name is one of ours to answer.
func (z *zone) answer(q dns.Question) (answer, bool) {
	name := strings.ToLower(dns.Fqdn(q.Name))
	if addr, ok := reversed(name); ok {
		if !slices.ContainsFunc(z.networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
			return answer{}, false
		}
		return z.closing(z.pointers(q, addr)), true
	}
	if !dns.IsSubDomain(z.domain, name) {
		return answer{}, false
	}
	labels := dns.SplitDomainName(strings.TrimSuffix(name, z.domain))
	return z.closing(z.lookup(q, labels)), true
}

// closing adds to an answer without records for how long that may be believed.
func (z *zone) closing(records []dns.RR, extra []dns.RR, exists bool) answer {
	a := answer{answer: records, extra: extra}
	if len(records) > 0 {
		return a
	}
	if !exists {
		a.rcode = dns.RcodeNameError
	}
	a.authority = []dns.RR{soa(z.domain, z.domain)}
	return a
}

// lookup finds the records of a name below the domain. exists says whether
// the name has records of any kind, or names below it.
func (z *zone) lookup(q dns.Question, labels []string) (records, extra []dns.RR, exists bool) {
	if len(labels) == 0 {
		return z.apex(q), nil, true
	}
	switch last := labels[len(labels)-1]; {
	case len(labels) == 1 && last == "dns-version":
		if q.Qtype == dns.TypeTXT || q.Qtype == dns.TypeANY {
			records = append(records, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{schemaVersion}})
		}
		return records, nil, true
	case last == "svc":
		return z.service(q, labels[:len(labels)-1])
	case last == "pod":
		return z.pod(q, labels[:len(labels)-1])
	}
	return nil, nil, false
}

func (z *zone) apex(q dns.Question) []dns.RR {
	switch q.Qtype {
	case dns.TypeSOA, dns.TypeANY:
		return []dns.RR{soa(z.domain, z.domain)}
	case dns.TypeNS:
		return []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "ns.dns." + z.domain}}
	}
	return nil
}

// pod answers names that hold an address: 10-42-0-5.namespace.pod.
func (z *zone) pod(q dns.Question, labels []string) (records, extra []dns.RR, exists bool) {
	switch len(labels) {
	case 0:
		return nil, nil, true
	case 1:
		return nil, nil, z.directory.namespace(labels[0])
	case 2:
		addr, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
		if err != nil || !addr.Is4() || !z.directory.namespace(labels[1]) {
			return nil, nil, false
		}
		return addresses(q, []netip.Addr{addr}), nil, true
	}
	return nil, nil, false
}

// service answers [_port._proto. or host.]service.namespace.svc.
func (z *zone) service(q dns.Question, labels []string) (records, extra []dns.RR, exists bool) {
	switch len(labels) {
	case 0:
		return nil, nil, true
	case 1:
		return nil, nil, z.directory.namespace(labels[0])
	}
	n := len(labels)
	svc := z.directory.service(labels[n-1], labels[n-2])
	if svc == nil {
		return nil, nil, false
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return z.external(q, svc, n)
	}
	hosts := z.hosts(svc)
	switch rest := labels[:n-2]; {
	case len(rest) == 0:
		// A headless Service without endpoints has no name.
		exists = !headless(svc) || len(hosts) > 0
		records, extra = z.services(q, svc, hosts, "", "")
		return append(records, addresses(q, addrsOf(hosts))...), extra, exists
	case len(rest) == 1 && strings.HasPrefix(rest[0], "_"):
		return nil, nil, slices.ContainsFunc(portsOf(svc, hosts), func(p port) bool { return "_"+p.proto == rest[0] })
	case len(rest) == 1:
		hosts = slices.DeleteFunc(hosts, func(h host) bool { return h.label != rest[0] || !headless(svc) })
		return addresses(q, addrsOf(hosts)), nil, len(hosts) > 0
	case len(rest) == 2 && strings.HasPrefix(rest[0], "_") && strings.HasPrefix(rest[1], "_"):
		name, proto := rest[0][1:], rest[1][1:]
		exists = slices.ContainsFunc(portsOf(svc, hosts), func(p port) bool { return p.name == name && p.proto == proto })
		records, extra = z.services(q, svc, hosts, name, proto)
		return records, extra, exists
	}
	return nil, nil, false
}

func (z *zone) external(q dns.Question, svc *corev1.Service, labels int) (records, extra []dns.RR, exists bool) {
	if labels != 2 || svc.Spec.ExternalName == "" {
		return nil, nil, labels == 2
	}
	return []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: dns.Fqdn(svc.Spec.ExternalName)}}, nil, true
}

// A port is one that a service or a host of it answers.
type port struct {
	name   string
	proto  string // in lower case
	number uint16
}

// A host is what stands behind the name of a service: the service's own
// address, or each endpoint if it is headless.
type host struct {
	label string // its name below the service's; empty for the service itself
	addr  netip.Addr
	ports []port
}

func headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

func (z *zone) hosts(svc *corev1.Service) []host {
	if headless(svc) {
		hosts := endpointHosts(z.directory.parts(svc.Namespace, svc.Name))
		// In no order, so that clients that take the first are spread.
		rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
		return hosts
	}
	addr, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil {
		return nil
	}
	h := host{addr: addr}
	for _, p := range svc.Spec.Ports {
		h.ports = append(h.ports, port{p.Name, strings.ToLower(cmp.Or(string(p.Protocol), "tcp")), uint16(p.Port)})
	}
	return []host{h}
}

// endpointHosts are the ready endpoints, each once for each of its ports' sets.
func endpointHosts(parts []*discoveryv1.EndpointSlice) []host {
	var hosts []host
	for _, part := range parts {
		ports := slicePorts(part)
		for _, e := range part.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
				continue
			}
			if addr, err := netip.ParseAddr(e.Addresses[0]); err == nil && addr.Is4() {
				hosts = append(hosts, host{hostLabel(e, addr), addr, ports})
			}
		}
	}
	return hosts
}

func hostLabel(e discoveryv1.Endpoint, addr netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return strings.ToLower(*e.Hostname)
	}
	return strings.ReplaceAll(addr.String(), ".", "-")
}

func slicePorts(part *discoveryv1.EndpointSlice) []port {
	var ports []port
	for _, p := range part.Ports {
		if p.Port == nil {
			continue
		}
		one := port{proto: "tcp", number: uint16(*p.Port)}
		if p.Name != nil {
			one.name = *p.Name
		}
		if p.Protocol != nil {
			one.proto = strings.ToLower(string(*p.Protocol))
		}
		ports = append(ports, one)
	}
	return ports
}

// portsOf are the ports that have a name of their own.
func portsOf(svc *corev1.Service, hosts []host) []port {
	var all []port
	for _, h := range hosts {
		all = append(all, h.ports...)
	}
	return slices.DeleteFunc(all, func(p port) bool { return p.name == "" })
}

// services are the SRV records of the named port, or of all if name is empty.
func (z *zone) services(q dns.Question, svc *corev1.Service, hosts []host, name, proto string) (records, extra []dns.RR) {
	if q.Qtype != dns.TypeSRV {
		return nil, nil
	}
	base := svc.Name + "." + svc.Namespace + ".svc." + z.domain
	seen := map[string]bool{}
	for _, h := range hosts {
		target := base
		if h.label != "" {
			target = h.label + "." + base
		}
		for _, p := range h.ports {
			if name != "" && (p.name != name || p.proto != proto) {
				continue
			}
			records = append(records, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 1, Port: p.number, Target: target})
			if key := target + h.addr.String(); !seen[key] {
				seen[key] = true
				extra = append(extra, addressRecord(target, h.addr))
			}
		}
	}
	return records, extra
}

// pointers are the names of an address.
func (z *zone) pointers(q dns.Question, addr netip.Addr) (records, extra []dns.RR, exists bool) {
	var names []string
	for _, svc := range z.directory.servicesAt(addr) {
		names = append(names, svc.Name+"."+svc.Namespace+".svc."+z.domain)
	}
	for _, part := range z.directory.partsAt(addr) {
		service := part.Labels[discoveryv1.LabelServiceName]
		svc := z.directory.service(part.Namespace, service)
		if svc == nil || !headless(svc) {
			continue
		}
		for _, h := range endpointHosts([]*discoveryv1.EndpointSlice{part}) {
			if h.addr == addr {
				names = append(names, h.label+"."+service+"."+part.Namespace+".svc."+z.domain)
			}
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
		for _, name := range names {
			records = append(records, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
		}
	}
	return records, nil, len(names) > 0
}

// reversed reads the address from a name like 5.0.42.10.in-addr.arpa.
func reversed(name string) (netip.Addr, bool) {
	rest, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(rest, ".")
	slices.Reverse(parts)
	addr, err := netip.ParseAddr(strings.Join(parts, "."))
	return addr, err == nil && addr.Is4()
}

func addrsOf(hosts []host) []netip.Addr {
	var addrs []netip.Addr
	for _, h := range hosts {
		if !slices.Contains(addrs, h.addr) {
			addrs = append(addrs, h.addr)
		}
	}
	return addrs
}

func addresses(q dns.Question, addrs []netip.Addr) []dns.RR {
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeANY {
		return nil
	}
	var records []dns.RR
	for _, addr := range addrs {
		records = append(records, addressRecord(q.Name, addr))
	}
	return records
}

func addressRecord(name string, addr netip.Addr) dns.RR {
	return &dns.A{Hdr: header(name, dns.TypeA), A: addr.AsSlice()}
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// soa says for how long it may be believed that a name does not exist.
func soa(domain, at string) dns.RR {
	return &dns.SOA{
		Hdr: header(at, dns.TypeSOA), Ns: "ns.dns." + domain, Mbox: "hostmaster." + domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}
