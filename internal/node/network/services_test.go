// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

var (
	webIP  = netip.MustParseAddr("10.143.0.20")
	dnsIP  = netip.MustParseAddr("10.143.0.10")
	lbIP   = netip.MustParseAddr("203.0.113.9")
	noneIP = netip.MustParseAddr("10.143.77.77")
)

// A town is a manager with three pods that serve and one that asks.
type town struct {
	m      *Manager
	pods   []Sandbox
	client Sandbox
}

func newTown(t testing.TB) town {
	t.Helper()
	m := open(t, testOptions(t))
	w := town{m: m, client: acquire(t, m, "client")}
	for i := range 3 {
		s := acquire(t, m, fmt.Sprint("pod", i))
		serve(t, s.NetNS, ":8080", s.PodUID)
		serveUDP(t, s.NetNS, ":8053", s.PodUID)
		w.pods = append(w.pods, s)
	}
	return w
}

func (w town) web(n int) Service {
	s := Service{
		Name: "ns/web:http", ClusterIP: webIP, Proto: TCP, Port: 80, NodePort: 30080,
		ExternalIPs: []netip.Addr{lbIP},
	}
	for _, p := range w.pods[:n] {
		s.Endpoints = append(s.Endpoints, endpoint(p, 8080))
	}
	return s
}

func (w town) dns(n int) Service {
	s := Service{Name: "ns/dns:udp", ClusterIP: dnsIP, Proto: UDP, Port: 53, NodePort: 30053}
	for _, p := range w.pods[:n] {
		s.Endpoints = append(s.Endpoints, endpoint(p, 8053))
	}
	return s
}

func (w town) program(t testing.TB, services ...Service) {
	t.Helper()
	if err := w.m.Program(testContext(t), services); err != nil {
		t.Fatal(err)
	}
}

// tally asks n times and counts who answered.
func tally(t testing.TB, ns, network, addr string, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		name, _, _ := strings.Cut(mustAsk(t, ns, network, addr), " ")
		counts[name]++
	}
	return counts
}

func balanced(t testing.TB, counts map[string]int, over, n int) {
	t.Helper()
	if len(counts) != over {
		t.Errorf("answers came from %v, want %d", counts, over)
	}
	for name, c := range counts {
		if c < n/over/3 {
			t.Errorf("%s answered %d of %d times", name, c, n)
		}
	}
}

func TestServiceBalances(t *testing.T) {
	w := newTown(t)
	neighbourHost(t) // which is the way to lbIP
	w.program(t, w.web(3), w.dns(3))
	for _, ns := range []string{w.client.NetNS, ownNS} {
		for _, addr := range []netip.Addr{webIP, lbIP} {
			balanced(t, tally(t, ns, "tcp", addr.String()+":80", 60), 3, 60)
		}
		balanced(t, tally(t, ns, "udp", dnsIP.String()+":53", 60), 3, 60)
	}
	if got, want := mustAsk(t, w.client.NetNS, "tcp", webIP.String()+":80"), w.client.IP.String(); !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want the client's own address %s", got, want)
	}
}

func TestHairpin(t *testing.T) {
	w := newTown(t)
	w.program(t, w.web(1), w.dns(1))
	if got := mustAsk(t, w.pods[0].NetNS, "tcp", webIP.String()+":80"); got != fmt.Sprint("pod0 ", w.m.Gateway()) {
		t.Errorf("got %q", got)
	}
	if got := mustAsk(t, w.pods[0].NetNS, "udp", dnsIP.String()+":53"); !strings.HasPrefix(got, "pod0") {
		t.Errorf("got %q", got)
	}
}

func TestNodePortOnLoopbackOnly(t *testing.T) {
	w := newTown(t)
	w.program(t, w.web(3), w.dns(3))
	neighbour, host := neighbourHost(t)
	balanced(t, tally(t, ownNS, "tcp", "127.0.0.1:30080", 60), 3, 60)
	balanced(t, tally(t, ownNS, "udp", "127.0.0.1:30053", 60), 3, 60)
	refused(t, neighbour, "tcp", host.String()+":30080")
	refused(t, w.client.NetNS, "tcp", w.m.Gateway().String()+":30080")
	refused(t, w.client.NetNS, "tcp", "127.0.0.1:30080")
	refused(t, ownNS, "tcp", host.String()+":30080")
}

func TestNoEndpointIsRefusedAtOnce(t *testing.T) {
	w := newTown(t)
	neighbour, _ := neighbourHost(t)
	w.program(t, w.web(0), w.dns(0))
	for _, ns := range []string{w.client.NetNS, ownNS} {
		refused(t, ns, "tcp", webIP.String()+":80")
		refused(t, ns, "tcp", webIP.String()+":81")
		refused(t, ns, "tcp", noneIP.String()+":80")
		refused(t, ns, "tcp", lbIP.String()+":80")
	}
	refused(t, w.client.NetNS, "udp", dnsIP.String()+":53")
	if _, err := ask(ownNS, "udp", dnsIP.String()+":53"); !errors.Is(err, syscall.EPERM) {
		t.Errorf("got %v, want what the kernel says of its own refused datagrams", err)
	}
	refused(t, neighbour, "tcp", lbIP.String()+":80")
	refused(t, ownNS, "tcp", "127.0.0.1:30080")
	w.program(t, w.web(1), w.dns(1))
	for _, ns := range []string{w.client.NetNS, ownNS} {
		mustAsk(t, ns, "tcp", webIP.String()+":80")
		mustAsk(t, ns, "tcp", lbIP.String()+":80")
		mustAsk(t, ns, "udp", dnsIP.String()+":53")
		refused(t, ns, "tcp", webIP.String()+":81")
	}
	mustAsk(t, neighbour, "tcp", lbIP.String()+":80")
	mustAsk(t, ownNS, "tcp", "127.0.0.1:30080")
}

func TestAffinity(t *testing.T) {
	w := newTown(t)
	s := w.web(3)
	s.Affinity = time.Second
	w.program(t, s)
	first := tally(t, w.client.NetNS, "tcp", webIP.String()+":80", 10)
	if len(first) != 1 {
		t.Fatalf("one client was led to %v", first)
	}
	var had string
	for had = range first {
	}
	// The endpoint goes: the client is led to another, and stays there.
	var keep []netip.AddrPort
	for i, p := range w.pods {
		if p.PodUID != had {
			keep = append(keep, s.Endpoints[i])
		}
	}
	s.Endpoints = keep
	if err := w.m.Update(testContext(t), []Service{s}, nil); err != nil {
		t.Fatal(err)
	}
	second := tally(t, w.client.NetNS, "tcp", webIP.String()+":80", 10)
	if len(second) != 1 || second[had] != 0 {
		t.Errorf("after %s left, one client was led to %v", had, second)
	}
	// Different clients are spread.
	all := map[string]int{}
	for i := range 12 {
		c := acquire(t, w.m, fmt.Sprint("client-", i))
		for name, n := range tally(t, c.NetNS, "tcp", webIP.String()+":80", 3) {
			all[name] += n
		}
	}
	if len(all) != 2 {
		t.Errorf("twelve clients were led to %v", all)
	}
	// And it ends.
	waitUntil(t, "affinity ended", func() bool {
		<-time.After(1100 * time.Millisecond)
		return tally(t, w.client.NetNS, "tcp", webIP.String()+":80", 1)[had] == 0 &&
			len(tally(t, w.client.NetNS, "tcp", webIP.String()+":80", 1)) == 1
	})
}

// TestUDPClientFollows: a client that keeps one socket is led to a living
// endpoint as soon as its own is gone.
func TestUDPClientFollows(t *testing.T) {
	w := newTown(t)
	s := w.dns(1)
	w.program(t, s)
	c, err := Dial(testContext(t), w.client.NetNS, "udp", dnsIP.String()+":53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	once := func() string {
		c.SetDeadline(time.Now().Add(3 * time.Second))
		buf := make([]byte, 64)
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if got := once(); !strings.HasPrefix(got, "pod0") {
		t.Fatalf("got %q", got)
	}
	s.Endpoints = []netip.AddrPort{endpoint(w.pods[2], 8053)}
	w.program(t, s)
	if got := once(); !strings.HasPrefix(got, "pod2") {
		t.Errorf("after the change: %q", got)
	}
}

// TestTCPConnectionSurvives: changing a service breaks no connection.
func TestTCPConnectionSurvives(t *testing.T) {
	w := newTown(t)
	w.program(t, w.web(1))
	c, err := Dial(testContext(t), w.client.NetNS, "tcp", webIP.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	echo := func() {
		t.Helper()
		buf := make([]byte, 128)
		if _, err := fmt.Fprint(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	s := w.web(1)
	s.Endpoints = []netip.AddrPort{endpoint(w.pods[1], 8080)}
	w.program(t, s)
	echo()
	w.program(t)
	echo()
}

func TestHostPorts(t *testing.T) {
	w := newTown(t)
	neighbour, host := neighbourHost(t)
	ctx := testContext(t)
	a, b := w.pods[0], w.pods[1]
	if err := w.m.SetHostPorts(ctx, a.PodUID, []HostPort{{HostPort: 9090, PodPort: 8080, Proto: TCP}, {HostPort: 9053, PodPort: 8053, Proto: UDP}}); err != nil {
		t.Fatal(err)
	}
	if err := w.m.SetHostPorts(ctx, b.PodUID, []HostPort{{HostIP: host, HostPort: 9091, PodPort: 8080, Proto: TCP}}); err != nil {
		t.Fatal(err)
	}
	if err := w.m.SetHostPorts(ctx, b.PodUID, []HostPort{{HostIP: host, HostPort: 9090, PodPort: 8080, Proto: TCP}}); err == nil {
		t.Error("one host port for two pods")
	}
	for _, ns := range []string{neighbour, ownNS, w.client.NetNS, a.NetNS} {
		mustAsk(t, ns, "tcp", host.String()+":9090")
		mustAsk(t, ns, "udp", host.String()+":9053")
		mustAsk(t, ns, "tcp", host.String()+":9091")
	}
	mustAsk(t, ownNS, "tcp", "127.0.0.1:9090")
	refused(t, ownNS, "tcp", "127.0.0.1:9091")
	if err := w.m.Release(ctx, a.PodUID); err != nil {
		t.Fatal(err)
	}
	refused(t, neighbour, "tcp", host.String()+":9090")
	if err := w.m.SetHostPorts(ctx, b.PodUID, []HostPort{{HostPort: 9090, PodPort: 8080, Proto: TCP}}); err != nil {
		t.Errorf("the port of a pod that left: %v", err)
	}
	mustAsk(t, neighbour, "tcp", host.String()+":9090")
	refused(t, neighbour, "tcp", host.String()+":9091")
}

func TestEgress(t *testing.T) {
	w := newTown(t)
	neighbour, host := neighbourHost(t)
	serve(t, neighbour, ":7070", "neighbour")
	if got := mustAsk(t, w.client.NetNS, "tcp", "198.51.100.2:7070"); got != fmt.Sprint("neighbour ", host) {
		t.Errorf("got %q", got)
	}
}

// TestGuard sends frames that no honest pod would.
func TestGuard(t *testing.T) {
	m := open(t, testOptions(t))
	if err := writeSysctl("net/ipv4/conf/all/rp_filter", "2"); err != nil {
		t.Fatal(err)
	}
	s, other := acquire(t, m, "a"), acquire(t, m, "b")
	for _, tt := range []struct {
		name     string
		from, to netip.Addr
		listen   string
		passes   bool
	}{
		{"to the gateway", s.IP, m.Gateway(), m.Gateway().String(), true},
		{"to the host's loopback", s.IP, netip.MustParseAddr("127.0.0.1"), "127.0.0.1", false},
		{"from loopback", netip.MustParseAddr("127.0.0.1"), m.Gateway(), m.Gateway().String(), false},
		{"from another pod's address", other.IP, m.Gateway(), m.Gateway().String(), false},
		{"from an outside address", netip.MustParseAddr("192.0.2.1"), m.Gateway(), m.Gateway().String(), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.ListenPacket("udp4", tt.listen+":7171")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sendFrame(t, s, tt.from, tt.to, 7171)
			limit := 200 * time.Millisecond
			if tt.passes {
				limit = 5 * time.Second
			}
			c.SetReadDeadline(time.Now().Add(limit))
			_, _, err = c.ReadFrom(make([]byte, 64))
			if passed := err == nil; passed != tt.passes {
				t.Errorf("passed: %v", passed)
			}
		})
	}
}

// sendFrame sends a hand-made UDP datagram from the pod's link to the host.
func sendFrame(t *testing.T, s Sandbox, from, to netip.Addr, port uint16) {
	t.Helper()
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	udp := binary.BigEndian.AppendUint16(nil, 1234)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = append(binary.BigEndian.AppendUint16(udp, 9), 0, 0, 'x')
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(udp)))
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	frame := append(append(append([]byte{}, hostMAC()...), podMAC(s.IP)...), 8, 0)
	frame = append(append(frame, ip...), udp...)
	err := InNetNS(s.NetNS, func() error {
		eth, err := net.InterfaceByName(podLink)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth.Index, Halen: 6})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRulesComeBack: a reload of the machine's firewall removes all tables.
func TestRulesComeBack(t *testing.T) {
	w := newTown(t)
	w.program(t, w.web(2))
	conn := &nftables.Conn{}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the rules are back", func() bool {
		_, err := askFor(w.client.NetNS, "tcp", webIP.String()+":80", 200*time.Millisecond)
		return err == nil
	})
}

// TestFailedWriteIsRepaired: after an error the whole table is written anew.
func TestFailedWriteIsRepaired(t *testing.T) {
	w := newTown(t)
	w.program(t, w.web(2))
	// Somebody removes an element that we are about to remove.
	conn := &nftables.Conn{}
	table := &nftables.Table{Name: "sonagi", Family: nftables.TableFamilyIPv4}
	set, err := conn.GetSetByName(table, "services")
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushSet(set)
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.m.Program(testContext(t), []Service{w.dns(1)}); err == nil {
		t.Error("removing an element that was not there succeeded")
	}
	waitUntil(t, "repaired", func() bool {
		_, err := askFor(w.client.NetNS, "udp", dnsIP.String()+":53", 200*time.Millisecond)
		return err == nil
	})
	refused(t, w.client.NetNS, "tcp", webIP.String()+":80")
	w.program(t, w.web(1))
	mustAsk(t, w.client.NetNS, "tcp", webIP.String()+":80")
}

// TestReleaseForgetsConnections: nothing of a pod is left for the next one
// that gets its address.
func TestReleaseForgetsConnections(t *testing.T) {
	w := newTown(t)
	mustAsk(t, w.client.NetNS, "udp", endpoint(w.pods[0], 8053).String())
	mustAsk(t, w.client.NetNS, "tcp", endpoint(w.pods[0], 8080).String())
	count := func() (n int) {
		err := deleteFlows(func(f flow) bool {
			if f.target == w.pods[0].IP {
				n++
			}
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if count() == 0 {
		t.Fatal("nothing is tracked")
	}
	if err := w.m.Release(testContext(t), w.pods[0].PodUID); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "connections forgotten", func() bool { return count() == 0 })
}

func TestManyServices(t *testing.T) {
	w := newTown(t)
	services := append(manyServices(3000), w.web(3))
	w.program(t, services...)
	balanced(t, tally(t, w.client.NetNS, "tcp", webIP.String()+":80", 60), 3, 60)
	w.program(t, w.web(1))
	refused(t, w.client.NetNS, "tcp", services[5].ClusterIP.String()+":80")
	mustAsk(t, w.client.NetNS, "tcp", webIP.String()+":80")
}

// TestOthersDropNothingOfPods: Docker and ufw make chains that drop what they
// do not know, before and after we start.
func TestOthersDropNothingOfPods(t *testing.T) {
	needRoot(t)
	drop := nftables.ChainPolicyDrop
	firewall := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	closeChain := func(name string, hook *nftables.ChainHook) {
		t.Helper()
		conn := &nftables.Conn{}
		conn.AddTable(firewall)
		conn.AddChain(&nftables.Chain{
			Name: name, Table: firewall, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		conn := &nftables.Conn{}
		for name := range map[string]bool{"FORWARD": true, "INPUT": true} {
			rules, err := conn.GetRules(firewall, &nftables.Chain{Name: name, Table: firewall})
			if err != nil || len(rules) > 0 {
				t.Errorf("after Purge, %s has %d rules, %v", name, len(rules), err)
			}
		}
		conn.DelTable(firewall)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	})
	closeChain("FORWARD", nftables.ChainHookForward)
	w := newTown(t)
	w.program(t, w.web(3))
	mustAsk(t, w.client.NetNS, "tcp", webIP.String()+":80")
	serve(t, ownNS, w.m.Gateway().String()+":8053", "host")
	closeChain("INPUT", nftables.ChainHookInput)
	waitUntil(t, "the new chain lets pods pass", func() bool {
		_, err := askFor(w.client.NetNS, "tcp", w.m.Gateway().String()+":8053", 200*time.Millisecond)
		return err == nil
	})
	mustAsk(t, w.client.NetNS, "tcp", webIP.String()+":80")
	mustAsk(t, ownNS, "tcp", webIP.String()+":80")
	mustAsk(t, ownNS, "tcp", "127.0.0.1:30080")
	if iptables, err := exec.LookPath("iptables-nft"); err == nil {
		out, err := exec.Command(iptables, "-S").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "-A FORWARD -i sgi+ -m comment") {
			t.Errorf("iptables: %s, %v", out, err)
		}
	}
}

// TestHostBehindService: the API server is an endpoint on this machine.
func TestHostBehindService(t *testing.T) {
	w := newTown(t)
	serve(t, ownNS, w.m.Gateway().String()+":6443", "api")
	w.program(t, Service{
		Name: "default/kubernetes:https", ClusterIP: netip.MustParseAddr("10.143.0.1"), Proto: TCP, Port: 443, NodePort: 30443,
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(w.m.Gateway(), 6443)},
	})
	if got := mustAsk(t, w.client.NetNS, "tcp", "10.143.0.1:443"); got != fmt.Sprint("api ", w.client.IP) {
		t.Errorf("got %q", got)
	}
	mustAsk(t, ownNS, "tcp", "10.143.0.1:443")
	mustAsk(t, ownNS, "tcp", "127.0.0.1:30443")
}
