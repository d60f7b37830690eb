// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// String says the change in the words of the nft command, for people and tests.
func (c change) String() string {
	var b strings.Builder
	c.out.write(&b, "delete")
	for _, name := range c.gone {
		fmt.Fprintf(&b, "delete chain %s\n", name)
	}
	for _, ch := range c.rewritten {
		verb := "flush"
		if c.fresh[ch.name] {
			verb = "add"
		}
		fmt.Fprintf(&b, "%s chain %s\n%s", verb, ch.name, ch)
	}
	c.in.write(&b, "add")
	return b.String()
}

func (e elements) write(b *strings.Builder, verb string) {
	var lines []string
	line := func(format string, args ...any) {
		lines = append(lines, verb+" element "+fmt.Sprintf(format, args...)+"\n")
	}
	for v, chain := range e.services {
		line("services { %s : goto %s }", v, chain)
	}
	for v, chain := range e.nodePorts {
		line("node-ports { %s : goto %s }", v, chain)
	}
	for v := range e.refused {
		line("refused { %s }", v)
	}
	for a := range e.hairpins {
		line("hairpins { %s . %s }", a, a)
	}
	for v, to := range e.hostPorts {
		line("host-ports { %s : %s . %d }", v, to.Addr(), to.Port())
	}
	for v, to := range e.anyHostPorts {
		line("any-host-ports { %s : %s . %d }", v, to.Addr(), to.Port())
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
}

func (c chain) String() string {
	var list []string
	for i, e := range c.backends {
		list = append(list, fmt.Sprintf("%d : %s . %d", i, e.Addr(), e.Port()))
	}
	all := "numgen random mod " + fmt.Sprint(len(list)) + " map { " + strings.Join(list, ", ") + " }"
	if c.affinity == 0 {
		return fmt.Sprintf("  dnat to %s\n", all)
	}
	return fmt.Sprintf("  dnat to ip saddr . %#x map @affinity, if it is one of these, for %s\n  dnat to %s, kept in @affinity\n",
		c.id, c.affinity, all)
}

// String is the vip as an element of a set.
func (v vip) String() string {
	if v.addr == (netip.Addr{}) {
		return fmt.Sprintf("%s . %d", v.proto, v.port)
	}
	return fmt.Sprintf("%s . %s . %d", v.addr, v.proto, v.port)
}

// String is the protocol's name.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprint(uint8(p))
}
