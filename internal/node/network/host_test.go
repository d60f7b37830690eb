// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const insideEnv = "SONAGI_TEST_HOST"

// TestMain runs the tests on a machine of their own: a network and a mount
// namespace in which nobody else's links, routes and rules are.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(insideEnv) != "":
		if err := prepareTestHost(); err != nil {
			fmt.Fprintln(os.Stderr, "preparing the test's host:", err)
			os.Exit(1)
		}
		if dir := os.Getenv("SONAGI_TEST_CHILD"); dir != "" {
			childMain(dir)
			return
		}
		os.Exit(m.Run())
	case os.Getuid() != 0:
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	}
	fmt.Fprintln(os.Stderr, "making the test's host:", err)
	os.Exit(1)
}

func prepareTestHost() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root for network namespaces")
	}
}

func testOptions(t testing.TB) Options {
	t.Helper()
	needRoot(t)
	return Options{
		Dir:         filepath.Join(t.TempDir(), "sandboxes"),
		PodCIDR:     netip.MustParsePrefix("10.142.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.143.0.0/16"),
		Log:         slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// open opens a manager that is purged when the test ends.
func open(t testing.TB, o Options) *Manager {
	t.Helper()
	m, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := Purge(o); err != nil {
			t.Error(err)
		}
	})
	return m
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func acquire(t testing.TB, m *Manager, uid string) Sandbox {
	t.Helper()
	s, err := m.Acquire(testContext(t), uid, uid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve answers each TCP connection with "name peer" and echoes after it.
func serve(t testing.TB, ns, addr, name string) {
	t.Helper()
	l, err := Listen(context.Background(), ns, "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).IP)
				io.Copy(c, c)
			}()
		}
	}()
}

// serveUDP answers each datagram with "name peer".
func serveUDP(t testing.TB, ns, addr, name string) net.PacketConn {
	t.Helper()
	c, err := ListenPacket(context.Background(), ns, "udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(fmt.Appendf(nil, "%s %s", name, from.(*net.UDPAddr).IP), from)
		}
	}()
	return c
}

const ownNS = "/proc/thread-self/ns/net"

// ask dials and returns the first line of the answer.
func ask(ns, network, addr string) (string, error) {
	return askFor(ns, network, addr, 3*time.Second)
}

func askFor(ns, network, addr string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := Dial(ctx, ns, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func mustAsk(t testing.TB, ns, network, addr string) string {
	t.Helper()
	answer, err := ask(ns, network, addr)
	if err != nil {
		t.Fatalf("asking %s %s: %v", network, addr, err)
	}
	return answer
}

// refused fails unless the dial is refused at once.
func refused(t testing.TB, ns, network, addr string) {
	t.Helper()
	start := time.Now()
	answer, err := ask(ns, network, addr)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s %s: got %q, %v, want connection refused", network, addr, answer, err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("%s %s: refused after %s", network, addr, took)
	}
}

// neighbourHost makes another machine on a link of its own with the test's host.
func neighbourHost(t testing.TB) (ns string, hostIP netip.Addr) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "neighbour")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	fd, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "neigh0"
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd), PeerTxQLen: -1}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	hostIP = netip.MustParseAddr("198.51.100.1")
	configure(t, nil, "neigh0", "198.51.100.1/24", "198.51.100.2")
	err = InNetNS(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		configure(t, h, "lo", "", "")
		configure(t, h, "eth0", "198.51.100.2/24", "198.51.100.1")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := linkState("neigh0"); err != nil {
		t.Fatal(err)
	}
	return path, hostIP
}

func configure(t testing.TB, h *netlink.Handle, name, addr, gateway string) {
	t.Helper()
	if h == nil {
		h, _ = netlink.NewHandle(unix.NETLINK_ROUTE)
		defer h.Close()
	}
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.AddrAdd(link, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if gateway != "" {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
			t.Fatal(err)
		}
	}
}

// waitUntil waits for a state that has no event, within a bound.
func waitUntil(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func endpoint(s Sandbox, port uint16) netip.AddrPort { return netip.AddrPortFrom(s.IP, port) }

// traces names what is on the machine that a manager may have made.
func traces(t testing.TB, dir string) string {
	t.Helper()
	var all []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all = append(all, "link "+l.Attrs().Name)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		all = append(all, "route "+r.String())
	}
	neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		all = append(all, "neighbour "+n.String())
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, mounts...)
	conn := &nftables.Conn{}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		all = append(all, "table "+table.Name)
	}
	return strings.Join(all, "\n")
}

// childMain is a node process that works without pause until it is killed.
func childMain(dir string) {
	m, err := Open(childOptions(dir))
	if err != nil {
		fmt.Println("child:", err)
		os.Exit(1)
	}
	ctx := context.Background()
	for n := 0; ; n++ {
		uid := fmt.Sprint("pod-", os.Getpid(), "-", n)
		s, err := m.Acquire(ctx, uid, uid)
		if err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		err = m.Program(ctx, []Service{{
			Name: "ns/kept:http", ClusterIP: netip.MustParseAddr("10.143.0.9"), Proto: TCP, Port: 80,
			Endpoints: []netip.AddrPort{endpoint(s, 8080)},
		}})
		if err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		fmt.Println(uid)
		if n >= 3 {
			m.Release(ctx, fmt.Sprint("pod-", os.Getpid(), "-", n-3))
		}
	}
}

func childOptions(dir string) Options {
	return Options{
		Dir: dir, PodCIDR: netip.MustParsePrefix("10.142.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.143.0.0/16"),
	}
}

// readyCount says how many sandboxes wait.
func (p *pool) readyCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}
