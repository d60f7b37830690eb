// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"time"
)

// addresses hands out the addresses of one prefix. It walks round the prefix
// and lets a returned address rest for a while, because peers and connection
// tracking remember who had it.
type addresses struct {
	prefix  netip.Prefix
	rest    time.Duration
	next    netip.Addr              // where to look first
	used    map[netip.Addr]struct{} // handed out or never to be
	resting map[netip.Addr]time.Time
}

// newAddresses leaves out the network's own address, its last, and those in
// reserved.
func newAddresses(prefix netip.Prefix, rest time.Duration, reserved ...netip.Addr) *addresses {
	a := &addresses{
		prefix:  prefix.Masked(),
		rest:    rest,
		used:    map[netip.Addr]struct{}{},
		resting: map[netip.Addr]time.Time{},
	}
	for _, addr := range append(reserved, a.prefix.Addr(), lastAddr(a.prefix)) {
		a.used[addr] = struct{}{}
	}
	a.next = a.prefix.Addr()
	return a
}

// take returns an address that nobody has, and that nobody had lately.
func (a *addresses) take(now time.Time) (netip.Addr, error) {
	for addr, until := range a.resting {
		if !now.Before(until) {
			delete(a.resting, addr)
		}
	}
	size := 1 << (32 - a.prefix.Bits())
	if len(a.used)+len(a.resting) < size {
		addr := a.next
		for range size {
			addr = a.after(addr)
			if a.free(addr) {
				a.use(addr)
				return addr, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("%w in %s: %d in use, %d released less than %s ago",
		ErrExhausted, a.prefix, len(a.used), len(a.resting), a.rest)
}

// use marks an address as handed out; take goes on behind it.
func (a *addresses) use(addr netip.Addr) {
	a.used[addr] = struct{}{}
	a.next = addr
}

// put takes an address back.
func (a *addresses) put(addr netip.Addr, now time.Time) {
	if _, ok := a.used[addr]; !ok {
		return
	}
	delete(a.used, addr)
	if a.rest > 0 {
		a.resting[addr] = now.Add(a.rest)
	}
}

func (a *addresses) free(addr netip.Addr) bool {
	_, used := a.used[addr]
	_, resting := a.resting[addr]
	return !used && !resting
}

func (a *addresses) after(addr netip.Addr) netip.Addr {
	if addr = addr.Next(); a.prefix.Contains(addr) {
		return addr
	}
	return a.prefix.Addr()
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}
