// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of four bytes, side by side, so that fields can be joined to keys.
const (
	reg0 = unix.NFT_REG32_00 + iota
	reg1
	reg2
	_
	reg4 // where an address to lead to is put, its port behind it
	reg5
)

// maxAffinities bounds the memory of client affinities; when it is full,
// further clients are balanced anew at each connection.
const maxAffinities = 65536

// A table knows the objects of our nftables table by name, and puts messages
// about them into a batch.
type table struct {
	conn    *nftables.Conn
	table   *nftables.Table
	gateway netip.Addr
	pods    netip.Prefix
	cluster netip.Prefix // of service addresses
	nextID  uint32       // of sets, unique in the batch
}

func (t *table) set(name string, s nftables.Set) *nftables.Set {
	t.nextID++
	s.Table, s.Name, s.ID = t.table, name, t.nextID
	return &s
}

func vipType() nftables.SetDatatype {
	return nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
}

func portType() nftables.SetDatatype {
	return nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
}

func targetType() nftables.SetDatatype {
	return nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
}

func (t *table) services() *nftables.Set {
	return t.set("services", nftables.Set{IsMap: true, Concatenation: true, KeyType: vipType(), DataType: nftables.TypeVerdict})
}

func (t *table) nodePorts() *nftables.Set {
	return t.set("node-ports", nftables.Set{
		IsMap: true, Concatenation: true, DataType: nftables.TypeVerdict,
		KeyType: portType(),
	})
}

func (t *table) refused() *nftables.Set {
	return t.set("refused", nftables.Set{Concatenation: true, KeyType: vipType()})
}

func (t *table) hairpins() *nftables.Set {
	return t.set("hairpins", nftables.Set{
		Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr),
	})
}

func (t *table) hostPorts() *nftables.Set {
	return t.set("host-ports", nftables.Set{IsMap: true, Concatenation: true, KeyType: vipType(), DataType: targetType()})
}

func (t *table) anyHostPorts() *nftables.Set {
	return t.set("any-host-ports", nftables.Set{IsMap: true, Concatenation: true, KeyType: portType(), DataType: targetType()})
}

func (t *table) affinity() *nftables.Set {
	return t.set("affinity", nftables.Set{
		IsMap: true, Concatenation: true, Dynamic: true, HasTimeout: true, Size: maxAffinities,
		KeyType:  nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeMark),
		DataType: targetType(),
	})
}

// build writes the empty table: chains, sets, and the rules that never change.
func (t *table) build() error {
	t.table = t.conn.AddTable(t.table)
	for _, set := range []*nftables.Set{t.services(), t.nodePorts(), t.refused(), t.hairpins(), t.hostPorts(), t.anyHostPorts(), t.affinity()} {
		if err := t.conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	t.guard()
	t.lead("prerouting", nftables.ChainHookPrerouting, false)
	t.lead("output", nftables.ChainHookOutput, true)
	t.leave()
	refuse := t.refuse()
	for name, hook := range map[string]*nftables.ChainHook{
		"input": nftables.ChainHookInput, "forward": nftables.ChainHookForward, "filter-output": nftables.ChainHookOutput,
	} {
		t.check(name, hook, refuse)
	}
	return nil
}

func (t *table) base(name string, hook *nftables.ChainHook, kind nftables.ChainType, priority nftables.ChainPriority) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{
		Name: name, Table: t.table, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(priority),
	})
}

func (t *table) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: c, Exprs: all})
}

// guard keeps pods to their own addresses, and away from this machine's
// loopback addresses, which the host's ends of their links would route (see
// hostLinkSysctls). It looks at packets before connection tracking turns
// answers back. The kernel's own check of sources (rp_filter) would be
// loosened by a setting for all links that some systems make.
func (t *table) guard() {
	c := t.base("guard", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, *nftables.ChainPriorityRaw)
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	t.rule(c, fromPod(), inLoopback(destination), drop)
	t.rule(c, fromPod(), []expr.Any{
		&expr.Fib{Register: reg0, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: make([]byte, 4)},
	}, drop)
}

// lead sends connections to services and host ports on their way.
func (t *table) lead(name string, hook *nftables.ChainHook, own bool) {
	c := t.base(name, hook, nftables.ChainTypeNAT, *nftables.ChainPriorityNATDest)
	t.rule(c, vipKey(), verdictOf("services"))
	if own {
		t.rule(c, inLoopback(destination), portKey(), verdictOf("node-ports"))
	}
	t.rule(c, vipKey(), mapped("host-ports"), dnat())
	anyAddress := []expr.Any{
		&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
	t.rule(c, anyAddress, portKey(), mapped("any-host-ports"), dnat())
}

// leave gives connections the source address that brings the answers back.
func (t *table) leave() {
	c := t.base("postrouting", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, *nftables.ChainPriorityNATSource)
	t.rule(c, inLoopback(source), toPod(expr.CmpOpEq), t.snat())
	t.rule(c, []expr.Any{saddr(reg0), daddr(reg1), &expr.Lookup{SourceRegister: reg0, SetName: "hairpins"}}, t.snat())
	t.rule(c, in(source, t.pods, expr.CmpOpEq), in(destination, t.pods, expr.CmpOpNeq), toPod(expr.CmpOpNeq),
		[]expr.Any{&expr.Masq{}})
}

// refuse answers as a machine does on which nobody listens.
func (t *table) refuse() *nftables.Chain {
	c := t.conn.AddChain(&nftables.Chain{Name: "refuse", Table: t.table})
	t.rule(c, []expr.Any{
		l4proto(reg0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	})
	t.rule(c, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}})
	return c
}

const (
	icmpPortUnreachable = 3
	dynsetDelete        = 2 // NFT_DYNSET_OP_DELETE
)

// check refuses what was not led anywhere: service addresses nobody answers.
func (t *table) check(name string, hook *nftables.ChainHook, refuse *nftables.Chain) {
	c := t.base(name, hook, nftables.ChainTypeFilter, *nftables.ChainPriorityFilter-10)
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: refuse.Name}}
	// Established connections leave at once: this is all that each of their packets costs.
	t.rule(c, []expr.Any{
		&expr.Ct{Register: reg0, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	})
	t.rule(c, in(destination, t.cluster, expr.CmpOpEq), jump)
	t.rule(c, vipKey(), []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: "refused"}}, jump)
}

// service writes the rules of one service into its chain.
func (t *table) service(c *nftables.Chain, ch chain) error {
	choice := t.set("", nftables.Set{
		Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeMark, DataType: targetType(),
	})
	var elements []nftables.SetElement
	for i, e := range ch.backends {
		elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: targetBytes(e)})
	}
	choice.Name = "__map%d"
	if ch.affinity > 0 {
		if err := t.remembered(c, ch); err != nil {
			return err
		}
	}
	if err := t.conn.AddSet(choice, elements); err != nil {
		return err
	}
	pick := []expr.Any{
		&expr.Numgen{Register: reg0, Modulus: uint32(len(ch.backends)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg4, IsDestRegSet: true, SetName: choice.Name, SetID: choice.ID},
	}
	if ch.affinity > 0 {
		pick = append(pick, clientKey(ch.id)...)
		// An update lets the endpoint of an element stand: a stale one goes first.
		pick = append(pick, &expr.Dynset{SrcRegKey: reg0, SrcRegData: reg4, SetName: "affinity", Operation: dynsetDelete}, remember(ch))
	}
	t.rule(c, pick, dnat())
	return nil
}

// remembered leads a client back to its endpoint, if that is still one.
func (t *table) remembered(c *nftables.Chain, ch chain) error {
	alive := t.set("__set%d", nftables.Set{Anonymous: true, Constant: true, Concatenation: true, KeyType: targetType()})
	var elements []nftables.SetElement
	for _, e := range ch.backends {
		elements = append(elements, nftables.SetElement{Key: targetBytes(e)})
	}
	if err := t.conn.AddSet(alive, elements); err != nil {
		return err
	}
	t.rule(c, clientKey(ch.id), []expr.Any{
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg4, IsDestRegSet: true, SetName: "affinity"},
		&expr.Lookup{SourceRegister: reg4, SetName: alive.Name, SetID: alive.ID},
		remember(ch),
	}, dnat())
	return nil
}

func clientKey(id uint32) []expr.Any {
	return []expr.Any{saddr(reg0), &expr.Immediate{Register: reg1, Data: binaryutil.NativeEndian.PutUint32(id)}}
}

func remember(ch chain) expr.Any {
	return &expr.Dynset{
		SrcRegKey: reg0, SrcRegData: reg4, SetName: "affinity", Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: ch.affinity,
	}
}

// Offsets in the IPv4 header.
const (
	source      = 12
	destination = 16
)

func network32(at, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: 4}
}

func saddr(reg uint32) expr.Any { return network32(source, reg) }
func daddr(reg uint32) expr.Any { return network32(destination, reg) }

func l4proto(reg uint32) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg} }

func dport(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func vipKey() []expr.Any { return []expr.Any{daddr(reg0), l4proto(reg1), dport(reg2)} }

func portKey() []expr.Any { return []expr.Any{l4proto(reg0), dport(reg1)} }

func verdictOf(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg0, DestRegister: 0, IsDestRegSet: true, SetName: set}}
}

func mapped(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg0, DestRegister: reg4, IsDestRegSet: true, SetName: set}}
}

func dnat() []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg4, RegProtoMin: reg5, Specified: true,
	}}
}

func (t *table) snat() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg4, Data: t.gateway.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg4},
	}
}

func in(at uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		network32(at, reg0),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg0, Data: p.Masked().Addr().AsSlice()},
	}
}

func inLoopback(at uint32) []expr.Any {
	return in(at, netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8), expr.CmpOpEq)
}

func fromPod() []expr.Any { return group(expr.MetaKeyIIFGROUP, expr.CmpOpEq) }

func toPod(op expr.CmpOp) []expr.Any { return group(expr.MetaKeyOIFGROUP, op) }

func group(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg0},
		&expr.Cmp{Op: op, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(linkGroup)},
	}
}

func vipBytes(v vip) []byte {
	b := append(v.addr.AsSlice(), byte(v.proto), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, v.port), 0, 0)
}

func portBytes(v vip) []byte {
	b := []byte{byte(v.proto), 0, 0, 0}
	return append(binary.BigEndian.AppendUint16(b, v.port), 0, 0)
}

func targetBytes(a netip.AddrPort) []byte {
	return append(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()), 0, 0)
}
