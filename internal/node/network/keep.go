// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Failed writes are tried again after a second, then ever more seldom.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// sweepPause bounds how often the connection table is read for the
	// addresses of pods that left.
	sweepPause = time.Second
)

// rules keeps the kernel's table as the book says.
type rules struct {
	kernel *rulebook
	log    *slog.Logger
	repair chan struct{}

	mu    sync.Mutex
	book  *book
	stale bool // the table must be written anew before it can be changed
	// known is whether the services have been programmed once. Before that,
	// the table may hold those of an earlier process, which stay.
	known bool
	left  map[netip.Addr]bool // addresses whose connections are to be forgotten
	swept chan struct{}
}

func newRules(o Options) *rules {
	return &rules{
		kernel: newRulebook(o),
		log:    o.Log, book: newBook(), repair: make(chan struct{}, 1),
		left: map[netip.Addr]bool{}, swept: make(chan struct{}, 1),
	}
}

// open makes sure that there is a table, and leaves one that is there to the
// first programming.
func (r *rules) open(held []Sandbox) error {
	for _, s := range held {
		r.book.setPod(s.PodUID, s.IP, s.HostPorts)
	}
	there, err := r.kernel.exists()
	if err != nil {
		return err
	}
	r.stale = there
	if !there {
		if err := r.kernel.rewrite(r.book.all()); err != nil {
			return err
		}
	}
	r.letPass()
	if legacyFilter() {
		r.log.Info("this machine has rules of iptables-legacy; should they drop packets in FORWARD, allow those of the pods' links there")
	}
	return nil
}

func (r *rules) letPass() {
	if err := r.kernel.letPass(); err != nil {
		r.log.Warn("pods may be cut off", "err", err)
	}
}

// program changes the book and then the kernel. whole says that the book now
// holds all services.
func (r *rules) program(edit func(*book) change, whole bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := edit(r.book)
	r.known = r.known || whole
	if !r.known {
		return nil // written with the first whole set
	}
	if err := r.write(c); err != nil {
		return fmt.Errorf("programming services: %w", err)
	}
	if flows := staleFlows(r.book, c); len(flows) > 0 {
		if err := deleteFlows(func(f flow) bool { return flows.match(f) }); err != nil {
			r.log.Warn("forgetting connections to endpoints that are gone", "err", err)
		}
	}
	return nil
}

// write brings the change to the kernel, or all of the book if it must.
func (r *rules) write(c change) error {
	var err error
	if r.stale {
		err = r.kernel.rewrite(r.book.all())
	} else {
		err = r.kernel.apply(c)
	}
	r.stale = err != nil
	if err != nil {
		signal(r.repair)
	}
	return err
}

func (r *rules) setPod(uid string, ip netip.Addr, ports []HostPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.book.taken(uid, ports); err != nil {
		return err
	}
	c := r.book.setPod(uid, ip, ports)
	if r.known {
		return r.write(c)
	}
	return r.kernel.apply(c)
}

// forget has the connections of an address that nobody has any more removed.
func (r *rules) forget(ip netip.Addr) {
	r.mu.Lock()
	r.left[ip] = true
	r.mu.Unlock()
	signal(r.swept)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// keep writes the table again when a write failed or somebody else removed
// it, and sweeps connections, until ctx ends.
func (r *rules) keep(ctx context.Context) {
	var tasks sync.WaitGroup
	tasks.Go(func() { r.watch(ctx) })
	tasks.Go(func() { r.sweep(ctx) })
	defer r.kernel.close()
	defer tasks.Wait()
	retry := firstRetry
	for {
		select {
		case <-r.repair:
		case <-ctx.Done():
			return
		}
		err := r.restore()
		if err == nil {
			retry = firstRetry
			continue
		}
		r.log.Error("writing the service rules", "err", err, "again_in", retry)
		select {
		case <-time.After(retry):
			retry = min(2*retry, lastRetry)
			signal(r.repair)
		case <-ctx.Done():
			return
		}
	}
}

// restore writes the whole table if it is stale or gone.
func (r *rules) restore() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	there, err := r.kernel.exists()
	if err != nil {
		return err
	}
	r.letPass()
	if there && !(r.stale && r.known) {
		return nil
	}
	if err := r.kernel.rewrite(r.book.all()); err != nil {
		return err
	}
	r.stale = !r.known
	return nil
}

// watch looks out for others who remove our table, as a reload of the
// machine's firewall does, or make a chain that drops packets.
func (r *rules) watch(ctx context.Context) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		r.log.Warn("removal of the service rules by others will go unnoticed", "err", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for ctx.Err() == nil {
		messages, err := conn.Receive()
		look := err != nil // more happened than the buffer holds
		for _, m := range messages {
			look = look || r.concerns(m)
		}
		if look && ctx.Err() == nil {
			signal(r.repair)
		}
	}
}

// concerns reports whether the message tells of a removed table or of another
// table's chain.
func (r *rules) concerns(m netlink.Message) bool {
	switch m.Header.Type {
	case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE:
		return true
	case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN:
	default:
		return false
	}
	const familyHeader = 4 // struct nfgenmsg
	if len(m.Data) < familyHeader {
		return false
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[familyHeader:])
	for err == nil && attrs.Next() {
		if attrs.Type() == unix.NFTA_CHAIN_TABLE {
			return !slices.Contains(r.kernel.names[:], attrs.String())
		}
	}
	return false
}

// sweep forgets the connections of addresses that were released.
func (r *rules) sweep(ctx context.Context) {
	defer r.sweepOnce()
	for {
		select {
		case <-r.swept:
		case <-ctx.Done():
			return
		}
		r.sweepOnce()
		select {
		case <-time.After(sweepPause):
		case <-ctx.Done():
			return
		}
	}
}

func (r *rules) sweepOnce() {
	r.mu.Lock()
	left := r.left
	r.left = map[netip.Addr]bool{}
	r.mu.Unlock()
	if len(left) == 0 {
		return
	}
	if err := deleteFlows(func(f flow) bool { return left[f.source] || left[f.target] || left[f.backend] }); err != nil {
		r.log.Warn("forgetting the connections of pods that left", "err", err)
	}
}
