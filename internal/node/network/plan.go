// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// maxBackends bounds the endpoints of one service port: one kernel message
// holds them all.
const maxBackends = 1000

// A vip is what a client dials: an address, a protocol and a port. The zero
// address stands for loopback in a node port, for any address of this
// machine in a host port.
type vip struct {
	addr  netip.Addr
	proto Proto
	port  uint16
}

// A chain is where the connections to one service end up.
type chain struct {
	name     string
	service  string
	proto    Proto
	backends []netip.AddrPort
	affinity time.Duration
	id       uint32 // tells the services apart in the map of affinities
}

// A change is what one transaction does to the rules, in this order:
// elements out, chains out, chains in, elements in.
type change struct {
	out, in   elements
	gone      []string
	rewritten []chain
	fresh     map[string]bool // of rewritten: those that do not exist yet
}

// elements are members of the named sets and maps.
type elements struct {
	services  map[vip]string // to a chain
	nodePorts map[vip]string
	refused   map[vip]bool
	hairpins  map[netip.Addr]bool
	hostPorts map[vip]netip.AddrPort
	// anyHostPorts are those of every address of this machine.
	anyHostPorts map[vip]netip.AddrPort
}

func newElements() elements {
	return elements{map[vip]string{}, map[vip]string{}, map[vip]bool{}, map[netip.Addr]bool{}, map[vip]netip.AddrPort{}, map[vip]netip.AddrPort{}}
}

func (e elements) empty() bool {
	return len(e.services)+len(e.nodePorts)+len(e.refused)+len(e.hairpins)+len(e.hostPorts)+len(e.anyHostPorts) == 0
}

func (c change) empty() bool {
	return c.out.empty() && c.in.empty() && len(c.gone)+len(c.rewritten) == 0
}

// A book holds what the rules should say, and tells what to change when that
// changes. It is plain data: whoever uses it sees to locking.
type book struct {
	services map[string]Service
	pods     map[string]podPorts // host ports by pod
	claims   map[vip][]string    // who wants a vip; the first by name gets it
	hairpins map[netip.Addr]int  // how many endpoints and pods have the address
}

type podPorts struct {
	ip    netip.Addr
	ports []HostPort
}

func newBook() *book {
	return &book{
		services: map[string]Service{}, pods: map[string]podPorts{},
		claims: map[vip][]string{}, hairpins: map[netip.Addr]int{},
	}
}

// replace makes the book hold exactly these services.
func (b *book) replace(services []Service) change {
	want := make(map[string]bool, len(services))
	var changed []Service
	for _, s := range services {
		want[s.Name] = true
		if have, ok := b.services[s.Name]; !ok || !sameService(have, s) {
			changed = append(changed, s)
		}
	}
	var gone []string
	for name := range b.services {
		if !want[name] {
			gone = append(gone, name)
		}
	}
	return b.update(changed, gone)
}

// update puts the changed services in and takes the gone ones out.
func (b *book) update(changed []Service, gone []string) change {
	touched := map[string]bool{}
	for _, name := range gone {
		touched[name] = true
	}
	for _, s := range changed {
		touched[s.Name] = true
	}
	// Those who share a vip with a touched service may win or lose it.
	for name := range maps.Clone(touched) {
		b.rivals(b.services[name], touched)
	}
	for _, s := range changed {
		b.rivals(s, touched)
	}
	addrs := map[netip.Addr]bool{}
	for name := range touched {
		b.noteAddrs(b.services[name].Endpoints, addrs)
	}
	for _, s := range changed {
		b.noteAddrs(s.Endpoints, addrs)
	}
	before := b.render(touched)
	for _, name := range gone {
		b.drop(name)
	}
	for _, s := range changed {
		b.drop(s.Name)
		b.add(normal(s))
	}
	c := diff(before, b.render(touched))
	b.hairpinChange(addrs, c)
	return c
}

// setPod replaces the host ports of a pod.
func (b *book) setPod(uid string, ip netip.Addr, ports []HostPort) change {
	addrs := map[netip.Addr]bool{ip: b.hairpins[ip] > 0}
	before, after := page{elements: newElements()}, page{elements: newElements()}
	if old, ok := b.pods[uid]; ok {
		addrs[old.ip] = b.hairpins[old.ip] > 0
		old.elements(before.elements)
		b.count(old.ip, -1)
		delete(b.pods, uid)
	}
	if len(ports) > 0 {
		now := podPorts{ip, slices.Clone(ports)}
		now.elements(after.elements)
		b.count(ip, 1)
		b.pods[uid] = now
	}
	c := diff(before, after)
	b.hairpinChange(addrs, c)
	return c
}

func (p podPorts) elements(into elements) {
	for _, h := range p.ports {
		if v := hostVIP(h); v.addr.IsValid() {
			into.hostPorts[v] = netip.AddrPortFrom(p.ip, h.PodPort)
		} else {
			into.anyHostPorts[v] = netip.AddrPortFrom(p.ip, h.PodPort)
		}
	}
}

func hostVIP(h HostPort) vip {
	if h.HostIP.IsUnspecified() {
		return vip{netip.Addr{}, h.Proto, h.HostPort}
	}
	return vip{h.HostIP, h.Proto, h.HostPort}
}

// noteAddrs writes down which addresses have a hairpin element now.
func (b *book) noteAddrs(endpoints []netip.AddrPort, into map[netip.Addr]bool) {
	for _, e := range endpoints {
		if e.Addr().Is4() {
			into[e.Addr()] = b.hairpins[e.Addr()] > 0
		}
	}
}

// hairpinChange adds to the change the hairpin elements that came or went.
func (b *book) hairpinChange(before map[netip.Addr]bool, c change) {
	for addr, had := range before {
		switch has := b.hairpins[addr] > 0; {
		case had && !has:
			c.out.hairpins[addr] = true
		case has && !had:
			c.in.hairpins[addr] = true
		}
	}
}

func (b *book) count(addr netip.Addr, by int) {
	if b.hairpins[addr] += by; b.hairpins[addr] <= 0 {
		delete(b.hairpins, addr)
	}
}

// taken says which other pod has one of the host ports.
func (b *book) taken(uid string, ports []HostPort) error {
	for other, p := range b.pods {
		for _, h := range p.ports {
			if other != uid && slices.ContainsFunc(ports, func(w HostPort) bool { return clash(h, w) }) {
				return fmt.Errorf("%w: host port %d is taken by pod %s", ErrConflict, h.HostPort, other)
			}
		}
	}
	return nil
}

func clash(a, b HostPort) bool {
	x, y := hostVIP(a), hostVIP(b)
	return x.proto == y.proto && x.port == y.port &&
		(x.addr == y.addr || !x.addr.IsValid() || !y.addr.IsValid())
}

// all is the change that turns empty rules into what the book says.
func (b *book) all() change {
	names := map[string]bool{}
	for name := range b.services {
		names[name] = true
	}
	p := b.render(names)
	for _, pod := range b.pods {
		pod.elements(p.elements)
	}
	for addr := range b.hairpins {
		p.elements.hairpins[addr] = true
	}
	return diff(page{elements: newElements()}, p)
}

func (b *book) rivals(s Service, into map[string]bool) {
	for _, v := range vipsOf(s) {
		for _, name := range b.claims[v] {
			into[name] = true
		}
	}
}

func (b *book) drop(name string) {
	s, ok := b.services[name]
	if !ok {
		return
	}
	delete(b.services, name)
	for _, v := range vipsOf(s) {
		left := slices.DeleteFunc(b.claims[v], func(n string) bool { return n == name })
		if b.claims[v] = left; len(left) == 0 {
			delete(b.claims, v)
		}
	}
	for _, e := range s.Endpoints {
		b.count(e.Addr(), -1)
	}
}

func (b *book) add(s Service) {
	b.services[s.Name] = s
	for _, v := range vipsOf(s) {
		at, _ := slices.BinarySearch(b.claims[v], s.Name)
		b.claims[v] = slices.Insert(b.claims[v], at, s.Name)
	}
	for _, e := range s.Endpoints {
		b.count(e.Addr(), 1)
	}
}

// A page is what the rules say about some of the services.
type page struct {
	elements elements
	chains   map[string]chain
}

func (b *book) render(names map[string]bool) page {
	p := page{newElements(), map[string]chain{}}
	for name := range names {
		s, ok := b.services[name]
		if !ok {
			continue
		}
		c := chainOf(s)
		for _, v := range vipsOf(s) {
			if b.claims[v][0] == name {
				p.place(v, c)
			}
		}
		if len(c.backends) > 0 {
			p.chains[c.name] = c
		}
	}
	return p
}

func (p page) place(v vip, c chain) {
	switch {
	case len(c.backends) == 0:
		// Nobody listens on a node port: the kernel refuses it by itself.
		if v.addr.IsValid() {
			p.elements.refused[v] = true
		}
	case v.addr.IsValid():
		p.elements.services[v] = c.name
	default:
		p.elements.nodePorts[v] = c.name
	}
}

// diff is the change that leads from one page to another.
func diff(before, after page) change {
	c := change{out: newElements(), in: newElements(), fresh: map[string]bool{}}
	moved(before.elements.services, after.elements.services, c.out.services, c.in.services)
	moved(before.elements.nodePorts, after.elements.nodePorts, c.out.nodePorts, c.in.nodePorts)
	moved(before.elements.refused, after.elements.refused, c.out.refused, c.in.refused)
	moved(before.elements.hairpins, after.elements.hairpins, c.out.hairpins, c.in.hairpins)
	moved(before.elements.hostPorts, after.elements.hostPorts, c.out.hostPorts, c.in.hostPorts)
	moved(before.elements.anyHostPorts, after.elements.anyHostPorts, c.out.anyHostPorts, c.in.anyHostPorts)
	for name := range before.chains {
		if _, stays := after.chains[name]; !stays {
			c.gone = append(c.gone, name)
		}
	}
	for name, ch := range after.chains {
		have, old := before.chains[name]
		if !old || !slices.Equal(have.backends, ch.backends) || have.affinity != ch.affinity || have.proto != ch.proto {
			c.rewritten = append(c.rewritten, ch)
			c.fresh[name] = !old
		}
	}
	slices.Sort(c.gone)
	slices.SortFunc(c.rewritten, func(a, b chain) int { return cmp.Compare(a.name, b.name) })
	return c
}

// moved fills out with what before has and after has not, in with the opposite.
func moved[K, V comparable](before, after, out, in map[K]V) {
	for k, v := range before {
		if now, ok := after[k]; !ok || now != v {
			out[k] = v
		}
	}
	for k, v := range after {
		if was, ok := before[k]; !ok || was != v {
			in[k] = v
		}
	}
}

// normal sorts what has no order, drops what cannot be served, and bounds the rest.
func normal(s Service) Service {
	s.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e netip.AddrPort) bool { return !e.Addr().Is4() })
	slices.SortFunc(s.Endpoints, netip.AddrPort.Compare)
	s.Endpoints = slices.Compact(s.Endpoints)
	s.Endpoints = s.Endpoints[:min(len(s.Endpoints), maxBackends)]
	s.ExternalIPs = slices.DeleteFunc(slices.Clone(s.ExternalIPs), func(a netip.Addr) bool {
		return !a.Is4() || a.IsUnspecified() || a.IsLoopback()
	})
	slices.SortFunc(s.ExternalIPs, netip.Addr.Compare)
	s.ExternalIPs = slices.Compact(s.ExternalIPs)
	return s
}

func sameService(have, s Service) bool {
	if s = normal(s); !slices.Equal(have.Endpoints, s.Endpoints) || !slices.Equal(have.ExternalIPs, s.ExternalIPs) {
		return false
	}
	return have.ClusterIP == s.ClusterIP && have.NodePort == s.NodePort && have.Proto == s.Proto &&
		have.Port == s.Port && have.Affinity == s.Affinity
}

// vipsOf lists what leads to the service.
func vipsOf(s Service) []vip {
	var vips []vip
	if s.ClusterIP.Is4() {
		vips = append(vips, vip{s.ClusterIP, s.Proto, s.Port})
	}
	for _, addr := range s.ExternalIPs {
		if addr.Is4() && addr != s.ClusterIP {
			vips = append(vips, vip{addr, s.Proto, s.Port})
		}
	}
	if s.NodePort != 0 {
		vips = append(vips, vip{netip.Addr{}, s.Proto, s.NodePort})
	}
	return vips
}

func chainOf(s Service) chain {
	return chain{chainName(s.Name), s.Name, s.Proto, s.Endpoints, s.Affinity, uint32(hashOf(s.Name))}
}

// chainName is short enough for the kernel, unique by its number, and tells
// a reader of the rules whose it is.
func chainName(service string) string {
	plain := strings.Map(func(r rune) rune {
		if r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, service)
	return fmt.Sprintf("svc-%016x-%.80s", hashOf(service), plain)
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
