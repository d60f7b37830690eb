// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Other programs have tables of their own on this machine, and what one table
// accepts another may still drop: Docker and ufw drop what they do not know.
// A closed chain of another table therefore gets rules at its top that let
// the pods' packets pass. They look as the iptables command writes them,
// because it refuses a table in which it finds anything else.

// A passage is a rule for a closed chain: packets of a pod's link, to a network.
type passage struct {
	key expr.MetaKey // MetaKeyIIFNAME or MetaKeyOIFNAME
	to  netip.Prefix // invalid: anywhere
}

// passages are the rules that a closed chain of the hook needs.
func (r *rulebook) passages(hook nftables.ChainHook) []passage {
	switch hook {
	case *nftables.ChainHookForward:
		return []passage{{expr.MetaKeyIIFNAME, netip.Prefix{}}, {expr.MetaKeyOIFNAME, netip.Prefix{}}}
	case *nftables.ChainHookInput:
		return []passage{
			{expr.MetaKeyIIFNAME, netip.PrefixFrom(r.gateway, 32)},
			// Answers to a node port's client; nothing else gets here, see guard.
			{expr.MetaKeyIIFNAME, netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)},
		}
	}
	return nil
}

// closed reports whether a chain drops what it does not know.
func closed(c *nftables.Chain) bool {
	if c.Hooknum == nil || c.Type != nftables.ChainTypeFilter {
		return false
	}
	return c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop || c.Table.Name == "firewalld"
}

// letPass makes sure that the pods' packets pass the closed chains of others.
func (r *rulebook) letPass() error {
	conn, chains, err := r.closedChains()
	if err != nil {
		return err
	}
	var failed []error
	for _, c := range chains {
		want := r.passages(*c.Hooknum)
		have, err := r.ownRules(conn, c)
		if err == nil && len(have) < len(want) {
			err = r.insert(conn, c, want)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("table %s drops packets in its chain %s, and does not let us except the pods': %w", c.Table.Name, c.Name, err))
		}
	}
	return errors.Join(failed...)
}

func (r *rulebook) insert(conn *nftables.Conn, c *nftables.Chain, want []passage) error {
	for _, p := range want {
		conn.InsertRule(&nftables.Rule{Table: c.Table, Chain: c, UserData: r.comment(), Exprs: p.exprs(r.prefix)})
	}
	return conn.Flush()
}

func (p passage) exprs(prefix string) []expr.Any {
	all := []expr.Any{
		&expr.Meta{Key: p.key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)}, // no zero at its end: any name that starts so
	}
	if p.to.IsValid() {
		mask := bytes.Repeat([]byte{0xff}, p.to.Bits()/8)
		mask = append(mask, make([]byte, 4-len(mask))...)
		all = append(all, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: 4})
		if p.to.Bits() < 32 {
			all = append(all, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)})
		}
		all = append(all, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.to.Addr().AsSlice()})
	}
	return append(all, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// comment marks our rules in others' chains.
func (r *rulebook) comment() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, "for pods of "+r.names[0])
}

func (r *rulebook) ownRules(conn *nftables.Conn, c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := conn.GetRules(c.Table, c)
	return slices.DeleteFunc(rules, func(have *nftables.Rule) bool { return !bytes.Equal(have.UserData, r.comment()) }), err
}

// closedChains lists the closed chains that IPv4 packets of pods meet.
func (r *rulebook) closedChains() (*nftables.Conn, []*nftables.Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("opening nftables: %w", err)
	}
	var found []*nftables.Chain
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil, fmt.Errorf("listing the chains of others: %w", err)
		}
		for _, c := range chains {
			c.Table.Family = family
			if !slices.Contains(r.names[:], c.Table.Name) && closed(c) && len(r.passages(*c.Hooknum)) > 0 {
				found = append(found, c)
			}
		}
	}
	return conn, found, nil
}

// takeBack removes our rules from the chains of others.
func (r *rulebook) takeBack() error {
	conn, chains, err := r.closedChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		have, err := r.ownRules(conn, c)
		if err != nil {
			return fmt.Errorf("listing the rules of table %s: %w", c.Table.Name, err)
		}
		for _, rule := range have {
			if err := conn.DelRule(rule); err != nil {
				return err
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("removing our rules from other tables: %w", err)
	}
	return nil
}

// legacyFilter reports whether the machine also has rules of the older kind,
// which can be neither seen nor amended here.
func legacyFilter() bool {
	tables, err := os.ReadFile("/proc/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(tables)), "filter")
}
