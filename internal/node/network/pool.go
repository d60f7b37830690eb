// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// quiet is how long nobody must have asked for a sandbox before more are
	// made ahead: the processors belong to the pod that is starting.
	quiet = 50 * time.Millisecond
	// retryPool is how long the pool waits after it failed to make one.
	retryPool = time.Second
	// makers bounds how many are made at once when the pool is empty; the
	// kernel lets one at a time do most of it anyway.
	makers = 2
)

// A holding is a sandbox that a pod has.
type holding struct {
	Sandbox
	leaving chan struct{} // not nil while it is being removed; closed when that has ended
}

// A pool keeps sandboxes ready and knows who has the others.
type pool struct {
	dir     string
	builder *builder
	log     *slog.Logger
	making  chan struct{}
	wake    chan struct{}

	mu     sync.Mutex
	addrs  *addresses
	ready  []Sandbox
	held   map[string]*holding
	size   int
	last   time.Time // of the latest Acquire
	closed bool
}

func newPool(b *builder, o Options, gateway netip.Addr) *pool {
	return &pool{
		dir: o.Dir, builder: b, log: o.Log, size: max(o.PoolSize, 0),
		making: make(chan struct{}, makers), wake: make(chan struct{}, 1),
		addrs: newAddresses(o.PodCIDR, max(o.ReuseDelay, 0), gateway),
		held:  map[string]*holding{},
	}
}

// adopt takes over the sandboxes that the folder holds and removes what is
// left of unfinished ones.
func (p *pool) adopt() error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	links := map[string]bool{}
	for _, e := range entries {
		ip, ok := addrOfID(e.Name())
		if !ok {
			continue
		}
		kept, err := p.adoptOne(sandboxAt(p.dir, e.Name(), ip))
		if err != nil {
			return err
		}
		if kept {
			links[linkName(p.builder.prefix, ip)] = true
		}
	}
	p.readCursor()
	return p.removeStrayLinks(links)
}

func (p *pool) adoptOne(s Sandbox) (kept bool, err error) {
	if !whole(p.dir, s.ID) {
		return false, removePins(filepath.Join(p.dir, s.ID))
	}
	r, err := readRecord(p.dir, s.ID)
	if err != nil {
		// A half-written record cannot be: somebody else wrote there.
		p.log.Error("removing a sandbox whose owner cannot be told", "sandbox", s.ID, "err", err)
		return false, removePins(filepath.Join(p.dir, s.ID))
	}
	s.PodUID, s.Hostname, s.HostPorts = r.PodUID, r.Hostname, r.HostPorts
	_, linkErr := p.builder.host.LinkByName(linkName(p.builder.prefix, s.IP))
	switch {
	case s.PodUID == "" && (linkErr != nil || !p.addrs.prefix.Contains(s.IP)):
		return false, removePins(filepath.Join(p.dir, s.ID))
	case s.PodUID == "":
		p.ready = append(p.ready, s)
	default:
		if linkErr != nil {
			p.log.Error("a pod has lost its link", "pod", s.PodUID, "address", s.IP, "err", linkErr)
		}
		p.held[s.PodUID] = &holding{Sandbox: s}
	}
	p.addrs.use(s.IP)
	return true, nil
}

// removeStrayLinks removes links of ours that lead to no sandbox.
func (p *pool) removeStrayLinks(keep map[string]bool) error {
	links, err := p.builder.host.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if keep[a.Name] || !ourLink(a, p.builder.prefix) {
			continue
		}
		if err := p.builder.links.remove(a.Name); err != nil {
			return err
		}
	}
	return nil
}

// readCursor goes on where the last process stopped walking the addresses,
// so that a restart does not hand out those released lately.
func (p *pool) readCursor() {
	text, err := os.ReadFile(filepath.Join(p.dir, cursorFile))
	if err != nil {
		return
	}
	if at, err := netip.ParseAddr(string(text)); err == nil && p.addrs.prefix.Contains(at) {
		p.addrs.next = at
	}
}

func (p *pool) acquire(ctx context.Context, uid, hostname string) (Sandbox, error) {
	for {
		s, leaving, err := p.claim(uid)
		switch {
		case err != nil:
			return Sandbox{}, err
		case leaving != nil:
			select {
			case <-leaving:
				continue
			case <-ctx.Done():
				return Sandbox{}, ctx.Err()
			}
		case s.PodUID == uid:
			return s, nil
		case s.ID == "":
			if s, err = p.makeNow(ctx); err != nil {
				return Sandbox{}, err
			}
		}
		if s, given, err := p.give(s, uid, hostname); given || err != nil {
			return s, err
		}
	}
}

// claim finds what the pod has and whether that is just leaving, else takes a
// sandbox that is ready, if there is one.
func (p *pool) claim(uid string) (s Sandbox, leaving <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return Sandbox{}, nil, errClosed
	}
	if h := p.held[uid]; h != nil {
		return h.Sandbox, h.leaving, nil
	}
	p.last = time.Now()
	if len(p.ready) == 0 {
		return Sandbox{}, nil, nil
	}
	s = p.ready[0]
	p.ready = p.ready[1:]
	return s, nil, nil
}

// give makes the pod the owner of s, unless another call was faster to give
// it one.
func (p *pool) give(s Sandbox, uid, hostname string) (_ Sandbox, given bool, _ error) {
	s.PodUID, s.Hostname = uid, hostname
	err := setHostname(s.UTSNS, hostname)
	if err == nil {
		err = writeRecord(p.dir, s)
	}
	if err != nil {
		return Sandbox{}, false, errors.Join(err, p.discard(s))
	}
	p.mu.Lock()
	_, late := p.held[uid]
	if !late {
		p.held[uid] = &holding{Sandbox: s}
	}
	p.mu.Unlock()
	if late {
		return Sandbox{}, false, p.discard(s)
	}
	p.nudge()
	return s, true, nil
}

// makeNow makes a sandbox for somebody who waits for it.
func (p *pool) makeNow(ctx context.Context) (Sandbox, error) {
	select {
	case p.making <- struct{}{}:
		defer func() { <-p.making }()
	case <-ctx.Done():
		return Sandbox{}, ctx.Err()
	}
	// While waiting for a turn, the pool may have got one.
	p.mu.Lock()
	if len(p.ready) > 0 {
		s := p.ready[0]
		p.ready = p.ready[1:]
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	return p.make(false)
}

func (p *pool) make(background bool) (Sandbox, error) {
	p.mu.Lock()
	ip, err := p.addrs.take(time.Now())
	p.mu.Unlock()
	if err != nil {
		return Sandbox{}, err
	}
	s, err := p.builder.build(ip, background)
	if err != nil {
		p.putAddr(ip)
		return Sandbox{}, err
	}
	// Only a hint for the next process, see readCursor.
	_ = os.WriteFile(filepath.Join(p.dir, cursorFile), []byte(ip.String()), 0o600)
	return s, nil
}

// discard removes a sandbox that no pod has.
func (p *pool) discard(s Sandbox) error {
	if err := p.builder.destroy(s); err != nil {
		return err
	}
	p.putAddr(s.IP)
	return nil
}

func (p *pool) putAddr(ip netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addrs.put(ip, time.Now())
}

// release removes the pod's sandbox and returns the address it had.
func (p *pool) release(ctx context.Context, uid string) (netip.Addr, error) {
	h, wait := p.beginRelease(uid)
	if h == nil {
		if wait == nil {
			return netip.Addr{}, nil
		}
		select {
		case <-wait:
			return p.release(ctx, uid)
		case <-ctx.Done():
			return netip.Addr{}, ctx.Err()
		}
	}
	err := p.builder.destroy(h.Sandbox)
	p.mu.Lock()
	defer p.mu.Unlock()
	close(h.leaving)
	h.leaving = nil
	if err != nil {
		return netip.Addr{}, err
	}
	delete(p.held, uid)
	p.addrs.put(h.IP, time.Now())
	return h.IP, nil
}

// beginRelease returns the holding if the caller is to remove it, else what
// to wait for if somebody else does.
func (p *pool) beginRelease(uid string) (*holding, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.held[uid]
	if h == nil {
		return nil, nil
	}
	if h.leaving != nil {
		return nil, h.leaving
	}
	h.leaving = make(chan struct{})
	return h, nil
}

func (p *pool) sandboxes() []Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Sandbox, 0, len(p.held))
	for _, h := range p.held {
		all = append(all, h.Sandbox)
	}
	slices.SortFunc(all, func(a, b Sandbox) int { return cmp.Compare(a.PodUID, b.PodUID) })
	return all
}

func (p *pool) find(uid string) (Sandbox, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.held[uid]; h != nil && h.leaving == nil {
		return h.Sandbox, true
	}
	return Sandbox{}, false
}

func (p *pool) noteHostPorts(uid string, ports []HostPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.held[uid]
	if h == nil {
		return fmt.Errorf("pod %s: %w", uid, ErrUnknown)
	}
	h.HostPorts = slices.Clone(ports)
	return writeRecord(p.dir, h.Sandbox)
}

func (p *pool) resize(n int) {
	p.mu.Lock()
	p.size = max(n, 0)
	p.mu.Unlock()
	p.nudge()
}

func (p *pool) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// keep holds the pool at its size until ctx ends.
func (p *pool) keep(ctx context.Context) {
	for {
		wait, more := p.step()
		if !more {
			select {
			case <-p.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// step brings the pool one sandbox nearer to its size and says when to go on.
func (p *pool) step() (wait time.Duration, more bool) {
	p.mu.Lock()
	short := p.size - len(p.ready)
	since := time.Since(p.last)
	var extra Sandbox
	if short < 0 {
		extra = p.ready[len(p.ready)-1]
		p.ready = p.ready[:len(p.ready)-1]
	}
	p.mu.Unlock()
	switch {
	case short == 0:
		return 0, false
	case short < 0:
		if err := p.discard(extra); err != nil {
			p.log.Error("removing a spare sandbox", "err", err)
		}
		return 0, true
	case since < quiet:
		return quiet - since, true
	}
	s, err := p.make(true)
	if err != nil {
		p.log.Warn("making a sandbox ahead of need", "err", err)
		return retryPool, true
	}
	p.mu.Lock()
	p.ready = append(p.ready, s)
	p.mu.Unlock()
	return 0, true
}
