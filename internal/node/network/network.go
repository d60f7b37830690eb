// SPDX-License-Identifier: Apache-2.0

// Package network makes the namespaces, addresses and service rules of pods.
//
// # Every packet of a pod passes the host's routing
//
// A pod has one link, a veth pair, and an address of 32 bits: it has no
// neighbours, its only route leads to the gateway. The host has one route per
// pod, to the other end of the pair. The bridge has no ports: it is there to
// carry the gateway address and the route of the service addresses.
//
// Pods as ports of one bridge would be usual, and were turned down. A packet
// from pod to pod would then be switched and not routed: the answer to a
// rewritten connection would take the short way and arrive with an address
// that the client never dialled, unless br_netfilter is loaded, which other
// programs on the machine switch on and off. A bridge also learns, floods,
// waits for neighbours to be asked for, and hands every frame to any pod that
// claims the right hardware address. Here both ends of each link are written
// down as permanent neighbours, the first packet passes at once, a packet
// with a false source is dropped (the route back must be the way it came), and a
// connection to a pod that is gone is refused at once because its address
// has no route.
//
// # Sandboxes are made ahead of need
//
// Making namespaces and links takes milliseconds and locks that the whole
// kernel shares; so a few finished sandboxes wait in a pool, and Acquire only
// sets the host name and writes down the owner. What exists is what the
// folder and the kernel say: a process that starts anew adopts it.
//
// # Service rules are one table
//
// A plan (pure, in plan.go) turns services into chains and map elements; a
// change of one service is a transaction about that service alone. The kernel
// keeps forwarding while no process of ours runs. Whole table and process are
// reconciled by one transaction that replaces the table.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options say where the pods' network lives. Zero values stand for the
// defaults that their comments name.
type Options struct {
	Dir         string        // holds one folder per sandbox; required
	Bridge      string        // link that carries the gateway address; "sonagi0"
	LinkPrefix  string        // start of the names of the pods' host-side links, at most 7 letters; "sgi"
	Table       string        // nftables table; "sonagi"
	PodCIDR     netip.Prefix  // required
	ServiceCIDR netip.Prefix  // required
	PoolSize    int           // sandboxes kept ready; 4; negative: none
	MTU         int           // of the pods' links; that of the link of the host's default route
	ReuseDelay  time.Duration // how long a released address rests; 30s; negative: not at all
	Log         *slog.Logger
}

// A Sandbox is the set of namespaces that the containers of one pod share.
type Sandbox struct {
	ID       string
	PodUID   string
	Hostname string
	NetNS    string // path of the pinned network namespace
	IPCNS    string
	UTSNS    string
	IP       netip.Addr
	// HostPorts are the ports of this machine that lead to the pod.
	HostPorts []HostPort
}

// A Proto is a transport protocol, by its number.
type Proto uint8

// The protocols that services may speak.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// A HostPort leads from a port of this machine to one of a pod.
type HostPort struct {
	HostIP   netip.Addr // zero: every address of this machine
	HostPort uint16
	PodPort  uint16
	Proto    Proto
}

// A Service is one port of a Kubernetes Service and where it leads.
type Service struct {
	Name        string // unique: namespace/name:port
	ClusterIP   netip.Addr
	ExternalIPs []netip.Addr // external and load balancer addresses
	NodePort    uint16       // answered on loopback only; zero: none
	Proto       Proto
	Port        uint16
	Affinity    time.Duration // how long a client stays with its endpoint; zero: not at all
	Endpoints   []netip.AddrPort
}

// Errors that callers tell apart.
var (
	ErrExhausted = errors.New("no pod address is free")
	ErrUnknown   = errors.New("pod has no sandbox")
	ErrConflict  = errors.New("conflict")
	errClosed    = errors.New("the network is closed")
)

// Manager owns the pods' network on this machine.
type Manager struct {
	options Options
	gateway netip.Addr
	log     *slog.Logger
	lock    *os.File
	host    *netlink.Handle
	builder *builder
	pool    *pool
	rules   *rules
	stop    context.CancelFunc
	tasks   sync.WaitGroup
}

// Open prepares the machine and adopts the sandboxes that exist. It leaves
// existing service rules alone until they are programmed for the first time.
func Open(o Options) (*Manager, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	m := &Manager{options: o, gateway: o.gateway(), log: o.Log}
	if err := m.open(); err != nil {
		m.closeFiles()
		return nil, fmt.Errorf("opening the pod network: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.tasks.Go(func() { m.pool.keep(ctx) })
	m.tasks.Go(func() { m.rules.keep(ctx) })
	return m, nil
}

func (o Options) complete() (Options, error) {
	o = o.withDefaults()
	for _, c := range []netip.Prefix{o.PodCIDR, o.ServiceCIDR} {
		if !c.IsValid() || !c.Addr().Is4() || c.Bits() > 30 || c.Bits() < 8 {
			return o, fmt.Errorf("network %q is not an IPv4 network of 8 to 30 bits", c)
		}
	}
	o.PodCIDR, o.ServiceCIDR = o.PodCIDR.Masked(), o.ServiceCIDR.Masked()
	switch {
	case o.PodCIDR.Overlaps(o.ServiceCIDR):
		return o, fmt.Errorf("%w: pod network %s and service network %s overlap", ErrConflict, o.PodCIDR, o.ServiceCIDR)
	case len(o.LinkPrefix) > unix.IFNAMSIZ-1-8:
		return o, fmt.Errorf("link prefix %q is longer than 7 letters", o.LinkPrefix)
	case o.Dir == "":
		return o, errors.New("the network needs a folder")
	}
	return o, nil
}

func (o Options) withDefaults() Options {
	or := func(s *string, other string) {
		if *s == "" {
			*s = other
		}
	}
	or(&o.Bridge, "sonagi0")
	or(&o.LinkPrefix, "sgi")
	or(&o.Table, "sonagi")
	if o.PoolSize == 0 {
		o.PoolSize = 4
	}
	if o.ReuseDelay == 0 {
		o.ReuseDelay = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// gateway is the first address of the pods' network.
func (o Options) gateway() netip.Addr { return o.PodCIDR.Masked().Addr().Next() }

func (m *Manager) open() (err error) {
	if m.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	if err := m.checkHost(); err != nil {
		return err // before anything has been changed
	}
	if err := m.openFiles(); err != nil {
		return err
	}
	if err := forwarding(); err != nil {
		return err
	}
	if err := ensureBridge(m.host, m.options, m.gateway); err != nil {
		return err
	}
	m.builder = &builder{dir: m.options.Dir, prefix: m.options.LinkPrefix, gateway: m.gateway, mtu: m.options.MTU, host: m.host, links: &remover{host: m.host}}
	m.pool = newPool(m.builder, m.options, m.gateway)
	if err := m.pool.adopt(); err != nil {
		return err
	}
	m.rules = newRules(m.options)
	return m.rules.open(m.pool.sandboxes())
}

// openFiles takes hold of the folder, under the name that the kernel uses.
func (m *Manager) openFiles() (err error) {
	if err := os.MkdirAll(m.options.Dir, 0o700); err != nil {
		return err
	}
	if m.options.Dir, err = filepath.Abs(m.options.Dir); err != nil {
		return err
	}
	if m.options.Dir, err = filepath.EvalSymlinks(m.options.Dir); err != nil {
		return err
	}
	if m.lock, err = lockDir(filepath.Dir(m.options.Dir), filepath.Base(m.options.Dir)); err != nil {
		return err
	}
	return mountDir(m.options.Dir)
}

// checkHost looks whether our networks have a place beside the machine's own.
func (m *Manager) checkHost() error {
	o := &m.options
	have, err := hostRoutes(m.host, o.Bridge)
	if err != nil {
		return err
	}
	for name, prefix := range map[string]netip.Prefix{"pod network": o.PodCIDR, "service network": o.ServiceCIDR} {
		if err := conflict(name, prefix, have); err != nil {
			return err
		}
		for _, r := range wider(prefix, have) {
			m.log.Warn("part of a network that this machine has a route to is hidden by ours",
				"network", prefix, "hidden", r.dst, "link", r.link)
		}
	}
	if o.MTU == 0 {
		o.MTU = hostMTU(m.host)
	}
	return nil
}

// Gateway is the address of this machine as pods see it.
func (m *Manager) Gateway() netip.Addr { return m.gateway }

// Acquire gives the pod a sandbox, from the pool if one is ready. A pod that
// has one already gets the same again.
func (m *Manager) Acquire(ctx context.Context, podUID, hostname string) (Sandbox, error) {
	s, err := m.pool.acquire(ctx, podUID, hostname)
	if err != nil {
		return Sandbox{}, fmt.Errorf("getting a sandbox for pod %s: %w", podUID, err)
	}
	return s, nil
}

// Release removes the pod's sandbox and all that belongs to it. It is no
// error if there is none. The pod's processes must be gone.
func (m *Manager) Release(ctx context.Context, podUID string) error {
	if err := m.release(ctx, podUID); err != nil {
		return fmt.Errorf("releasing the sandbox of pod %s: %w", podUID, err)
	}
	return nil
}

func (m *Manager) release(ctx context.Context, podUID string) error {
	if err := m.rules.setPod(podUID, netip.Addr{}, nil); err != nil {
		return err
	}
	ip, err := m.pool.release(ctx, podUID)
	if err == nil && ip.IsValid() {
		m.rules.forget(ip)
	}
	return err
}

// Sandboxes lists the sandboxes that pods hold, those from before a restart too.
func (m *Manager) Sandboxes() []Sandbox { return m.pool.sandboxes() }

// SetHostPorts replaces the host ports of the pod.
func (m *Manager) SetHostPorts(ctx context.Context, podUID string, ports []HostPort) error {
	s, ok := m.pool.find(podUID)
	if !ok {
		return fmt.Errorf("setting host ports of pod %s: %w", podUID, ErrUnknown)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.rules.setPod(podUID, s.IP, ports); err != nil {
		return fmt.Errorf("setting host ports of pod %s: %w", podUID, err)
	}
	return m.pool.noteHostPorts(podUID, ports)
}

// SetSysctls sets namespaced kernel parameters, named as in a pod's
// securityContext ("net.core.somaxconn"), in the pod's sandbox.
func (m *Manager) SetSysctls(ctx context.Context, podUID string, values map[string]string) error {
	s, ok := m.pool.find(podUID)
	if !ok {
		return fmt.Errorf("setting sysctls of pod %s: %w", podUID, ErrUnknown)
	}
	for name, value := range values {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := setSandboxSysctl(s, name, value); err != nil {
			return fmt.Errorf("pod %s: %w", podUID, err)
		}
	}
	return nil
}

// SetPoolSize changes how many sandboxes are kept ready.
func (m *Manager) SetPoolSize(n int) { m.pool.resize(n) }

// Program makes the kernel forward exactly these services, in one transaction
// that touches only what differs. After an error the rules are written anew,
// by the next call or by itself.
func (m *Manager) Program(ctx context.Context, services []Service) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.rules.program(func(b *book) change { return b.replace(services) }, true)
}

// Update makes the kernel forward the changed services and forget the gone
// ones (by name), leaving all others alone.
func (m *Manager) Update(ctx context.Context, changed []Service, gone []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.rules.program(func(b *book) change { return b.update(changed, gone) }, false)
}

// Close stops the pool. Sandboxes and rules stay as they are, and the next
// Manager takes them over; see Purge.
func (m *Manager) Close() error {
	m.stop()
	m.pool.close()
	m.tasks.Wait()
	return m.closeFiles()
}

func (m *Manager) closeFiles() error {
	if m.host != nil {
		m.host.Close()
	}
	if m.lock != nil {
		return m.lock.Close()
	}
	return nil
}
