// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkGroup marks the pods' host-side links, so that a rule can match them by
// a number. It spells "sona".
const linkGroup = 0x736f6e61

// podLink is the name of the one link in a sandbox.
const podLink = "eth0"

// backgroundNice is how far work ahead of need stands back.
const backgroundNice = 10

// podSysctls are set in every new sandbox: what container runtimes give
// unprivileged processes today (any port, ping), and no IPv6 on links that
// come later, whose duplicate address detection would cost a second and
// lead nowhere. Loopback keeps ::1.
func podSysctls() [][2]string {
	return [][2]string{
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
	}
}

// hostLinkSysctls are set on the host's end of a pod's link. Loopback
// addresses may be routed through it, since a NodePort connection from
// 127.0.0.1 has that source until it is rewritten; the rules drop what a pod
// sends from or to such an address.
func hostLinkSysctls(link string) [][2]string {
	return [][2]string{
		{"net/ipv6/conf/" + link + "/disable_ipv6", "1"},
		{"net/ipv4/conf/" + link + "/route_localnet", "1"},
		{"net/ipv4/conf/" + link + "/forwarding", "1"},
	}
}

func writeSysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/"+name, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("setting %s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("setting %s to %q: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// hostMAC is the host's end of every link: a pod sees but one.
func hostMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x5a, 0, 0, 0, 1} }

// podMAC is derived from the address, so that neighbours can be written down
// instead of asked for.
func podMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x5b, b[0], b[1], b[2], b[3]}
}

// linkName is the host's end of the link of the pod with this address.
func linkName(prefix string, ip netip.Addr) string {
	b := ip.As4()
	return fmt.Sprintf("%s%02x%02x%02x%02x", prefix, b[0], b[1], b[2], b[3])
}

// builder makes and destroys sandboxes.
type builder struct {
	dir     string
	prefix  string
	gateway netip.Addr
	mtu     int
	host    *netlink.Handle
	links   *remover
}

// build makes a whole sandbox for the address, or nothing.
func (b *builder) build(ip netip.Addr, background bool) (Sandbox, error) {
	s := sandboxAt(b.dir, newID(ip), ip)
	at := filepath.Join(b.dir, s.ID)
	if err := os.Mkdir(at, 0o700); err != nil {
		return s, err
	}
	err := onOwnThread(func() error {
		if background {
			// Best effort: a machine may forbid it.
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, backgroundNice)
		}
		return b.buildHere(s, at)
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(at, readyFile), nil, 0o600)
	}
	if err != nil {
		return s, errors.Join(fmt.Errorf("making a sandbox for %s: %w", ip, err), b.destroy(s))
	}
	return s, nil
}

// onOwnThread runs fn on a thread that ends with it, whatever fn did to it.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if onMainThread() {
			done <- besideMainThread(fn, onOwnThread)
			return
		}
		done <- fn()
	}()
	return <-done
}

// buildHere turns the calling thread's namespaces into the sandbox.
func (b *builder) buildHere(s Sandbox, at string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("making namespaces: %w", err)
	}
	for _, kv := range podSysctls() {
		if err := writeSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, pin := range pins() {
		if err := pinNamespace(pin, filepath.Join(at, pin)); err != nil {
			return err
		}
	}
	netns, err := os.Open(s.NetNS)
	if err != nil {
		return err
	}
	defer netns.Close()
	return b.connect(s, int(netns.Fd()))
}

func pinNamespace(kind, at string) error {
	f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount("/proc/thread-self/ns/"+kind, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pinning %s namespace: %w", kind, err)
	}
	return nil
}

// connect lays the link between the host and the sandbox that the calling
// thread is in. The host's end goes up first: the link then has a carrier
// when the pod's end goes up, which is therefore usable at once.
func (b *builder) connect(s Sandbox, netns int) error {
	name := linkName(b.prefix, s.IP)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group, attrs.HardwareAddr = name, b.mtu, linkGroup, hostMAC()
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: podLink, PeerHardwareAddr: podMAC(s.IP),
		PeerNamespace: netlink.NsFd(netns), PeerTxQLen: -1,
	}
	if err := b.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("making link %s: %w", name, err)
	}
	if err := b.hostEnd(s.IP, veth); err != nil {
		return err
	}
	if err := b.podEnd(s.IP); err != nil {
		return err
	}
	return b.settle(name)
}

func (b *builder) hostEnd(ip netip.Addr, link *netlink.Veth) error {
	// A goroutine of the host's namespaces: the sysctls are the host's.
	done := make(chan error, 1)
	go func() { done <- setHostSysctls(link.Name) }()
	if err := <-done; err != nil {
		return err
	}
	if err := b.host.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", link.Name, err)
	}
	err := b.host.RouteReplace(&netlink.Route{
		LinkIndex: link.Index, Dst: ipNet(netip.PrefixFrom(ip, 32)),
		Scope: netlink.SCOPE_LINK, Src: b.gateway.AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("routing %s: %w", ip, err)
	}
	return b.neighbour(b.host, link.Index, ip, podMAC(ip))
}

func setHostSysctls(link string) error {
	for _, kv := range hostLinkSysctls(link) {
		if err := writeSysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (b *builder) podEnd(ip netip.Addr) error {
	pod, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer pod.Close()
	lo, err := pod.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	eth, err := pod.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("finding %s: %w", podLink, err)
	}
	if err := pod.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, 32))}); err != nil {
		return fmt.Errorf("adding %s: %w", ip, err)
	}
	for _, link := range []netlink.Link{lo, eth} {
		if err := pod.LinkSetUp(link); err != nil {
			return fmt.Errorf("setting %s up: %w", link.Attrs().Name, err)
		}
	}
	if err := b.neighbour(pod, eth.Attrs().Index, b.gateway, hostMAC()); err != nil {
		return err
	}
	return b.podRoutes(pod, eth.Attrs().Index)
}

// podRoutes sends everything to the host, the neighbours too.
func (b *builder) podRoutes(pod *netlink.Handle, eth int) error {
	for _, r := range []*netlink.Route{
		{LinkIndex: eth, Dst: ipNet(netip.PrefixFrom(b.gateway, 32)), Scope: netlink.SCOPE_LINK},
		{LinkIndex: eth, Gw: b.gateway.AsSlice()},
	} {
		if err := pod.RouteAdd(r); err != nil {
			return fmt.Errorf("adding the pod's route %s: %w", r, err)
		}
	}
	return nil
}

func (b *builder) neighbour(h *netlink.Handle, link int, ip netip.Addr, mac net.HardwareAddr) error {
	err := h.NeighSet(&netlink.Neigh{
		LinkIndex: link, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: ip.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("writing down neighbour %s: %w", ip, err)
	}
	return nil
}

// settle makes the kernel act on the carrier of the host's end now; left
// alone it may do so after the first packets were dropped. Asking for the
// link state through ethtool is what does it.
func (b *builder) settle(link string) error {
	done := make(chan error, 1)
	go func() { done <- linkState(link) }()
	return <-done
}

// ethtoolValue is struct ethtool_value of the kernel.
type ethtoolValue struct{ cmd, data uint32 }

func linkState(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	value := &ethtoolValue{cmd: unix.ETHTOOL_GLINK}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], link)
	req.data = unsafe.Pointer(value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(value)
	if errno != 0 {
		return fmt.Errorf("asking for the state of %s: %w", link, errno)
	}
	if value.data == 0 {
		return fmt.Errorf("link %s has no carrier", link)
	}
	return nil
}

// destroy removes a sandbox, finished or not. It takes its mark of being
// whole first: a process that dies on the way leaves one that the next
// process goes on removing.
func (b *builder) destroy(s Sandbox) error {
	if err := os.Remove(filepath.Join(b.dir, s.ID, readyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.links.remove(linkName(b.prefix, s.IP)); err != nil {
		return err
	}
	return removePins(filepath.Join(b.dir, s.ID))
}

// removePins unmounts the namespaces under at and removes the folder.
func removePins(at string) error {
	var failed error
	for _, pin := range pins() {
		err := unix.Unmount(filepath.Join(at, pin), unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			failed = errors.Join(failed, fmt.Errorf("unpinning %s: %w", pin, err))
		}
	}
	if failed != nil {
		return failed
	}
	return os.RemoveAll(at)
}

// setHostname names the UTS namespace at path.
func setHostname(path, hostname string) error {
	return inNamespace(path, unix.CLONE_NEWUTS, func() error {
		return os.NewSyscallError("sethostname", unix.Sethostname(bytes.TrimSpace([]byte(hostname))))
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
