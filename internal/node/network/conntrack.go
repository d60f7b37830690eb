// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A flow is one tracked connection: who dialled what, and who answers.
type flow struct {
	proto       Proto
	source      netip.Addr
	target      netip.Addr
	targetPort  uint16
	backend     netip.Addr
	backendPort uint16
}

// udpTargets are the vips whose flows are stale unless they lead to one of
// the addresses. UDP has no end that the kernel could see: a client that goes
// on sending would be led to a dead endpoint for ever.
type udpTargets map[vip]map[netip.AddrPort]bool

func (t udpTargets) match(f flow) bool {
	if f.proto != UDP {
		return false
	}
	alive, ok := t[vip{f.target, f.proto, f.targetPort}]
	if !ok && f.target.IsLoopback() {
		alive, ok = t[vip{netip.Addr{}, f.proto, f.targetPort}]
	}
	return ok && !alive[netip.AddrPortFrom(f.backend, f.backendPort)]
}

// staleFlows says which flows a change may have made stale.
func staleFlows(b *book, c change) udpTargets {
	targets := udpTargets{}
	note := func(v vip) {
		if v.proto == UDP {
			targets[v] = b.backendsOf(v)
		}
	}
	for _, e := range []elements{c.out, c.in} {
		for _, vips := range []iter.Seq[vip]{maps.Keys(e.services), maps.Keys(e.nodePorts), maps.Keys(e.refused)} {
			for v := range vips {
				note(v)
			}
		}
	}
	for _, ch := range c.rewritten {
		if ch.proto != UDP {
			continue
		}
		for _, v := range vipsOf(b.services[ch.service]) {
			note(v)
		}
	}
	return targets
}

// backendsOf are the endpoints that the vip leads to.
func (b *book) backendsOf(v vip) map[netip.AddrPort]bool {
	alive := map[netip.AddrPort]bool{}
	if names := b.claims[v]; len(names) > 0 {
		for _, e := range b.services[names[0]].Endpoints {
			alive[e] = true
		}
	}
	return alive
}

// flowFilter adapts a function to the filter that netlink asks for.
type flowFilter func(flow) bool

// MatchConntrackFlow is called for each tracked connection.
func (f flowFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	return f(flow{
		proto:  Proto(c.Forward.Protocol),
		source: addrOf(c.Forward.SrcIP),
		target: addrOf(c.Forward.DstIP), targetPort: c.Forward.DstPort,
		backend: addrOf(c.Reverse.SrcIP), backendPort: c.Reverse.SrcPort,
	})
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// deleteFlows makes the kernel forget the connections that match.
func deleteFlows(match flowFilter) error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, match); err != nil {
		return fmt.Errorf("reading tracked connections: %w", err)
	}
	return nil
}
