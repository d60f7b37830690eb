// SPDX-License-Identifier: Apache-2.0

// Package network makes the namespaces, addresses and service rules of pods.
package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// Options say where the pods' network lives. Zero values stand for the
// defaults that their comments name.
type Options struct {
	Dir         string       // holds one folder per sandbox; required
	Bridge      string       // link that carries the gateway address; "sonagi0"
	LinkPrefix  string       // start of the names of the pods' host-side links, at most 6 letters; "sgi"
	Table       string       // nftables table; "sonagi"
	PodCIDR     netip.Prefix // required
	ServiceCIDR netip.Prefix // required
	PoolSize    int          // sandboxes kept ready; 4; negative: none
	MTU         int          // of the pods' links; that of the host's default route
	ReuseDelay  time.Duration
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
	ErrConflict  = errors.New("address conflict")
)

// Manager owns the pods' network on this machine.
type Manager struct{}

// Open prepares the machine and adopts the sandboxes that exist.
func Open(Options) (*Manager, error) { return nil, errors.ErrUnsupported }

// Gateway is the address of this machine as pods see it.
func (m *Manager) Gateway() netip.Addr { return netip.Addr{} }

// Acquire gives the pod a sandbox, from the pool if one is ready. A pod that
// has one already gets the same again.
func (m *Manager) Acquire(ctx context.Context, podUID, hostname string) (Sandbox, error) {
	return Sandbox{}, errors.ErrUnsupported
}

// Release removes the pod's sandbox and all that belongs to it. It is no
// error if there is none.
func (m *Manager) Release(ctx context.Context, podUID string) error { return errors.ErrUnsupported }

// Sandboxes lists the sandboxes that pods hold, those from before a restart too.
func (m *Manager) Sandboxes() []Sandbox { return nil }

// SetHostPorts replaces the host ports of the pod.
func (m *Manager) SetHostPorts(ctx context.Context, podUID string, ports []HostPort) error {
	return errors.ErrUnsupported
}

// SetSysctls sets namespaced kernel parameters, named as in a pod's
// securityContext ("net.core.somaxconn"), in the pod's sandbox.
func (m *Manager) SetSysctls(ctx context.Context, podUID string, values map[string]string) error {
	return errors.ErrUnsupported
}

// SetPoolSize changes how many sandboxes are kept ready.
func (m *Manager) SetPoolSize(n int) {}

// Program makes the kernel forward exactly these services, in one transaction
// that touches only what differs.
func (m *Manager) Program(ctx context.Context, services []Service) error {
	return errors.ErrUnsupported
}

// Update makes the kernel forward the changed services and forget the gone
// ones (by name), leaving all others alone.
func (m *Manager) Update(ctx context.Context, changed []Service, gone []string) error {
	return errors.ErrUnsupported
}

// Close stops the pool. Sandboxes and rules stay as they are.
func (m *Manager) Close() error { return errors.ErrUnsupported }

// Purge removes everything that a Manager with these options ever made.
func Purge(Options) error { return errors.ErrUnsupported }
