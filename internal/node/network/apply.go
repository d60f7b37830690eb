// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

const (
	// kernelAnswers bounds how long a transaction may take.
	kernelAnswers = 10 * time.Second
	// A transaction is one message train, and each part of it is
	// acknowledged: the buffers hold those of ten thousand services.
	sendBuffer    = 32 << 20
	receiveBuffer = 64 << 20
	// elementsPerMessage keeps a message below the 64 KiB of one attribute.
	elementsPerMessage = 500
)

// A rulebook writes changes to the kernel. Its connection lasts, because the
// kernel cleans up after a transaction while its connection is closed, which
// takes longer than the transaction.
type rulebook struct {
	names   [2]string // our table has one of these, the first unless it was rewritten
	current string    // which, or empty if there is none
	prefix  string    // of the pods' links
	gateway netip.Addr
	pods    netip.Prefix
	cluster netip.Prefix

	conn *nftables.Conn
	raw  *netlink.Conn
}

func tableNames(base string) [2]string { return [2]string{base, base + "-2"} }

func newRulebook(o Options) *rulebook {
	return &rulebook{names: tableNames(o.Table), prefix: o.LinkPrefix, gateway: o.gateway(), pods: o.PodCIDR, cluster: o.ServiceCIDR}
}

// begin opens a batch.
func (r *rulebook) begin() (*table, error) {
	if r.conn == nil {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			r.raw = c
			return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(receiveBuffer))
		}))
		if err != nil {
			return nil, fmt.Errorf("opening nftables: %w", err)
		}
		r.conn = conn
	}
	if err := r.raw.SetDeadline(time.Now().Add(kernelAnswers)); err != nil {
		return nil, err
	}
	return &table{
		conn: r.conn, table: &nftables.Table{Name: r.current, Family: nftables.TableFamilyIPv4},
		gateway: r.gateway, pods: r.pods, cluster: r.cluster,
	}, nil
}

// close ends the connection. After a failure it must: what is left in it
// would be taken for the answers to the next transaction.
func (r *rulebook) close() {
	if r.conn != nil {
		r.conn.CloseLasting()
		r.conn = nil
	}
}

// rewrite replaces the whole table by what the change makes of an empty one.
// The new table is complete before the old one goes. To replace it in one
// transaction is not enough: the kernel lets packets meet the new rules a
// moment before the new elements of their sets.
func (r *rulebook) rewrite(c change) error {
	there, err := r.find()
	if err != nil {
		return err
	}
	r.current = r.names[0]
	if there == r.names[0] {
		r.current = r.names[1]
	}
	err = r.do(func(t *table) error {
		t.conn.AddTable(t.table) // so that there is one to delete
		t.conn.DelTable(t.table)
		return errors.Join(t.build(), t.commit(c))
	})
	if err != nil {
		r.current = there
		return err
	}
	if there == "" {
		return nil
	}
	return r.do(func(t *table) error { return deleteTables(t.conn, there) })
}

// apply makes a change to the table that is there.
func (r *rulebook) apply(c change) error {
	if c.empty() {
		return nil
	}
	return r.do(func(t *table) error { return t.commit(c) })
}

// exists reports whether the kernel has the table, whoever wrote it.
func (r *rulebook) exists() (bool, error) {
	there, err := r.find()
	if err == nil {
		r.current = there
	}
	return there != "", err
}

// find names the table that the kernel has. Of two, which a process killed in
// a rewrite left, the current one counts; a new process takes any.
func (r *rulebook) find() (there string, err error) {
	err = r.do(func(t *table) error {
		tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
		for _, have := range tables {
			if slices.Contains(r.names[:], have.Name) && (there == "" || have.Name == r.current) {
				there = have.Name
			}
		}
		return err
	})
	return there, err
}

func (r *rulebook) do(what func(*table) error) error {
	t, err := r.begin()
	if err == nil {
		err = what(t)
	}
	if err != nil {
		r.close()
		return fmt.Errorf("nftables table %s: %w", r.names[0], err)
	}
	return nil
}

// commit sends the batch with the change at its end.
func (t *table) commit(c change) error {
	if err := t.elements(c.out, t.conn.SetDeleteElements); err != nil {
		return err
	}
	for _, name := range c.gone {
		gone := &nftables.Chain{Name: name, Table: t.table}
		t.conn.FlushChain(gone)
		t.conn.DelChain(gone)
	}
	for _, ch := range c.rewritten {
		chain := &nftables.Chain{Name: ch.name, Table: t.table}
		t.conn.AddChain(chain)
		if !c.fresh[ch.name] {
			t.conn.FlushChain(chain)
		}
		if err := t.service(chain, ch); err != nil {
			return err
		}
	}
	if err := t.elements(c.in, t.conn.SetAddElements); err != nil {
		return err
	}
	return t.conn.Flush()
}

func (t *table) elements(e elements, do func(*nftables.Set, []nftables.SetElement) error) error {
	return errors.Join(
		each(t.services, maps.All(e.services), do, func(v vip, chain string) nftables.SetElement {
			return nftables.SetElement{Key: vipBytes(v), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
		}),
		each(t.nodePorts, maps.All(e.nodePorts), do, func(v vip, chain string) nftables.SetElement {
			return nftables.SetElement{Key: portBytes(v), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
		}),
		each(t.refused, maps.All(e.refused), do, func(v vip, _ bool) nftables.SetElement {
			return nftables.SetElement{Key: vipBytes(v)}
		}),
		each(t.hairpins, maps.All(e.hairpins), do, func(a netip.Addr, _ bool) nftables.SetElement {
			return nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)}
		}),
		each(t.hostPorts, maps.All(e.hostPorts), do, func(v vip, to netip.AddrPort) nftables.SetElement {
			return nftables.SetElement{Key: vipBytes(v), Val: targetBytes(to)}
		}),
		each(t.anyHostPorts, maps.All(e.anyHostPorts), do, func(v vip, to netip.AddrPort) nftables.SetElement {
			return nftables.SetElement{Key: portBytes(v), Val: targetBytes(to)}
		}),
	)
}

// each passes the members to do, in messages of bounded size.
func each[K, V any](set func() *nftables.Set, members iter.Seq2[K, V],
	do func(*nftables.Set, []nftables.SetElement) error, element func(K, V) nftables.SetElement) error {
	var some []nftables.SetElement
	for k, v := range members {
		some = append(some, element(k, v))
	}
	for part := range slices.Chunk(some, elementsPerMessage) {
		s := set()
		s.ID = 0 // it exists already: known by its name
		if err := do(s, part); err != nil {
			return err
		}
	}
	return nil
}

// deleteTables removes those of the tables that there are.
func deleteTables(conn *nftables.Conn, names ...string) error {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w", err)
	}
	for _, t := range tables {
		if slices.Contains(names, t.Name) {
			conn.DelTable(t)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("removing nftables tables: %w", err)
	}
	return nil
}
