// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostRoute is a route or an address of the machine that is not ours.
type hostRoute struct {
	dst  netip.Prefix
	link string
	what string // "route" or "address"
}

// conflict says why the prefix cannot be used beside what the machine has. A
// wider route is none: ours is more specific, as that of any local network.
func conflict(name string, prefix netip.Prefix, have []hostRoute) error {
	for _, r := range have {
		if r.dst.Bits() >= prefix.Bits() && prefix.Overlaps(r.dst) {
			return fmt.Errorf("%w: %s %s overlaps the %s %s on link %s of this machine: choose another %s",
				ErrConflict, name, prefix, r.what, r.dst, r.link, name)
		}
	}
	return nil
}

// wider lists the routes that contain the prefix, save those that stand for
// "everywhere".
func wider(prefix netip.Prefix, have []hostRoute) []hostRoute {
	var out []hostRoute
	for _, r := range have {
		if r.dst.Bits() > 1 && r.dst.Bits() < prefix.Bits() && r.dst.Overlaps(prefix) {
			out = append(out, r)
		}
	}
	return out
}

// hostRoutes lists routes and addresses that belong to links other than ours.
func hostRoutes(h *netlink.Handle, bridge string) ([]hostRoute, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		if a := l.Attrs(); a.Name != bridge && a.Group != linkGroup && a.Group != doomedGroup {
			names[a.Index] = a.Name
		}
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	var have []hostRoute
	for _, r := range routes {
		name, other := names[r.LinkIndex]
		if dst, ok := prefixOf(r.Dst); ok && other && r.Table != unix.RT_TABLE_LOCAL && dst.Bits() > 0 {
			have = append(have, hostRoute{dst, name, "route"})
		}
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addrs {
		name, other := names[a.LinkIndex]
		if dst, ok := prefixOf(a.IPNet); ok && other {
			have = append(have, hostRoute{netip.PrefixFrom(dst.Addr(), 32), name, "address"})
		}
	}
	return have, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok && addr.Unmap().Is4()
}

// forwarding turns on the one switch of the whole machine that is needed.
func forwarding() error {
	const name = "net/ipv4/ip_forward"
	if have, err := os.ReadFile("/proc/sys/" + name); err == nil && strings.TrimSpace(string(have)) == "1" {
		return nil
	}
	if err := writeSysctl(name, "1"); err != nil {
		return fmt.Errorf("pods need IP forwarding: %w (set net.ipv4.ip_forward=1 yourself if this process may not)", err)
	}
	return nil
}

// ensureBridge makes the link that carries the gateway address, and the
// routes that belong to it.
func ensureBridge(h *netlink.Handle, o Options, gateway netip.Addr) error {
	link, err := bridgeLink(h, o.Bridge)
	if err != nil {
		return err
	}
	for _, kv := range [][2]string{
		{"net/ipv6/conf/" + o.Bridge + "/disable_ipv6", "1"},
		// The bridge has no port, hence no carrier: its routes must count all the same.
		{"net/ipv4/conf/" + o.Bridge + "/ignore_routes_with_linkdown", "0"},
	} {
		if err := writeSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gateway, 32))}); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", o.Bridge, gateway, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", o.Bridge, err)
	}
	for _, r := range ourRoutes(o, gateway, link.Attrs().Index) {
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("adding route %s: %w", r.Dst, err)
		}
	}
	return nil
}

// ourRoutes: service addresses lead to the bridge so that a connection from
// this machine finds a route and a source address before it is rewritten; pod
// addresses that nobody has are refused at once.
func ourRoutes(o Options, gateway netip.Addr, bridge int) []*netlink.Route {
	return []*netlink.Route{
		{LinkIndex: bridge, Dst: ipNet(o.ServiceCIDR), Scope: netlink.SCOPE_LINK, Src: gateway.AsSlice()},
		{Dst: ipNet(o.PodCIDR), Type: unix.RTN_UNREACHABLE},
	}
}

func bridgeLink(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, net.HardwareAddr{0x02, 0x5a, 0, 0, 0, 0}
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, fmt.Errorf("making bridge %s: %w", name, err)
		}
		link, err = h.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("finding bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("%w: link %s exists and is a %s, not a bridge: choose another name", ErrConflict, name, link.Type())
	}
	return link, nil
}

// hostMTU is that of the link of the default route, at most that of Ethernet.
func hostMTU(h *netlink.Handle) int {
	const ethernet = 1500
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return ethernet
	}
	mtu := ethernet
	for _, r := range routes {
		if dst, ok := prefixOf(r.Dst); ok && dst.Bits() > 0 {
			continue
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU >= 576 {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return mtu
}
