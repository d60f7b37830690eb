// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPodsReachEachOther(t *testing.T) {
	o := testOptions(t)
	o.PoolSize = -1 // each is made at this moment: nothing had time to settle
	m := open(t, o)
	for i := range 10 {
		a, b := acquire(t, m, fmt.Sprint("a", i)), acquire(t, m, fmt.Sprint("b", i))
		serve(t, a.NetNS, ":80", "a")
		start := time.Now()
		if got, want := mustAsk(t, b.NetNS, "tcp", endpoint(a, 80).String()), fmt.Sprint("a ", b.IP); got != want {
			t.Errorf("pod to pod: got %q, want %q", got, want)
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("the first packet took %s", took)
		}
		if got, want := mustAsk(t, ownNS, "tcp", endpoint(a, 80).String()), fmt.Sprint("a ", m.Gateway()); got != want {
			t.Errorf("host to pod: got %q, want %q", got, want)
		}
	}
	s := acquire(t, m, "client")
	serve(t, ownNS, m.Gateway().String()+":8053", "host")
	if got, want := mustAsk(t, s.NetNS, "tcp", m.Gateway().String()+":8053"), fmt.Sprint("host ", s.IP); got != want {
		t.Errorf("pod to host: got %q, want %q", got, want)
	}
}

func TestAnAddressThatNobodyHasIsRefusedAtOnce(t *testing.T) {
	m := open(t, testOptions(t))
	a, b := acquire(t, m, "a"), acquire(t, m, "b")
	if err := m.Release(testContext(t), "b"); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{a.NetNS, ownNS} {
		start := time.Now()
		if _, err := ask(ns, "tcp", endpoint(b, 80).String()); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("got %v, want no route to host", err)
		}
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("took %s", took)
		}
	}
}

func TestSandbox(t *testing.T) {
	m := open(t, testOptions(t))
	s := acquire(t, m, "web-1")
	var name unix.Utsname
	if err := inNamespace(s.UTSNS, unix.CLONE_NEWUTS, func() error { return unix.Uname(&name) }); err != nil {
		t.Fatal(err)
	}
	if got := unix.ByteSliceToString(name.Nodename[:]); got != "web-1" {
		t.Errorf("hostname %q", got)
	}
	if own, _ := os.Hostname(); own == "web-1" {
		t.Error("the host was renamed")
	}
	err := InNetNS(s.NetNS, func() error {
		for file, want := range map[string]string{"ip_unprivileged_port_start": "0", "ping_group_range": "0\t2147483647"} {
			got, err := os.ReadFile("/proc/sys/net/ipv4/" + file)
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(got)) != want {
				t.Errorf("%s is %q", file, got)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(testContext(t), s.NetNS, "tcp", "[::1]:0")
	if err != nil {
		t.Errorf("IPv6 loopback: %v", err)
	} else {
		l.Close()
	}
	if again := acquire(t, m, "web-1"); again.ID != s.ID {
		t.Errorf("a second Acquire gave %s, the first %s", again.ID, s.ID)
	}
}

func TestSysctls(t *testing.T) {
	m := open(t, testOptions(t))
	s := acquire(t, m, "a")
	ctx := testContext(t)
	before, _ := os.ReadFile("/proc/sys/kernel/msgmax")
	if err := m.SetSysctls(ctx, "a", map[string]string{"net.core.somaxconn": "77", "kernel.msgmax": "12345"}); err != nil {
		t.Fatal(err)
	}
	InNetNS(s.NetNS, func() error {
		if got, _ := os.ReadFile("/proc/sys/net/core/somaxconn"); strings.TrimSpace(string(got)) != "77" {
			t.Errorf("somaxconn is %q", got)
		}
		return nil
	})
	if after, _ := os.ReadFile("/proc/sys/kernel/msgmax"); string(after) != string(before) {
		t.Errorf("the host's msgmax went from %q to %q", before, after)
	}
	for _, name := range []string{"kernel.panic", "vm.swappiness", "net/../kernel/panic", "net.core../../kernel", "x", "kernel.yama.sem"} {
		if err := m.SetSysctls(ctx, "a", map[string]string{name: "1"}); err == nil {
			t.Errorf("%s was set", name)
		}
	}
	if err := m.SetSysctls(ctx, "nobody", nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	o := testOptions(t)
	m := open(t, o)
	ctx := testContext(t)
	var mu sync.Mutex
	inUse := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 5 {
				uid := fmt.Sprintf("pod-%d-%d", w, i)
				s, err := m.Acquire(ctx, uid, uid)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, taken := inUse[s.IP]; taken {
					t.Errorf("%s has the address of %s", uid, other)
				}
				inUse[s.IP] = uid
				mu.Unlock()
				if rand.N(4) == 0 {
					continue
				}
				mu.Lock()
				delete(inUse, s.IP)
				mu.Unlock()
				if err := m.Release(ctx, uid); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(m.Sandboxes()); got != len(inUse) {
		t.Errorf("%d sandboxes, want %d", got, len(inUse))
	}
	for _, s := range m.Sandboxes() {
		if !whole(m.options.Dir, s.ID) {
			t.Errorf("%s is not whole", s.ID)
		}
	}
}

func TestSamePodTwiceAtOnce(t *testing.T) {
	m := open(t, testOptions(t))
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if i%5 == 4 {
				if err := m.Release(ctx, "pod"); err != nil {
					t.Error(err)
				}
				return
			}
			if s, err := m.Acquire(ctx, "pod", "pod"); err != nil || s.ID == "" {
				t.Error(s, err)
			}
		})
	}
	wg.Wait()
	if n := len(m.Sandboxes()); n > 1 {
		t.Errorf("one pod has %d sandboxes", n)
	}
}

func TestAddressesRunOut(t *testing.T) {
	o := testOptions(t)
	o.PodCIDR = netip.MustParsePrefix("10.142.0.0/29") // five pods
	o.PoolSize, o.ReuseDelay = -1, 300*time.Millisecond
	m := open(t, o)
	var first Sandbox
	for i := range 5 {
		s := acquire(t, m, fmt.Sprint("pod-", i))
		if i == 0 {
			first = s
		}
	}
	_, err := m.Acquire(testContext(t), "more", "more")
	if !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v", err)
	}
	t.Log(err)
	if err := m.Release(testContext(t), "pod-0"); err != nil {
		t.Fatal(err)
	}
	released := time.Now()
	if s, err := m.Acquire(testContext(t), "more", "more"); err == nil && time.Since(released) < o.ReuseDelay {
		t.Errorf("%s was handed out again at once", s.IP)
	}
	waitUntil(t, "the address has rested", func() bool {
		s, err := m.Acquire(testContext(t), "more", "more")
		return err == nil && s.IP == first.IP
	})
}

func TestFiftyUpsAndDownsLeaveNothing(t *testing.T) {
	o := testOptions(t)
	before := traces(t, o.Dir)
	for i := range 50 {
		m, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		s := acquire(t, m, "a")
		acquire(t, m, "b")
		err = m.Program(testContext(t), []Service{{
			Name: "ns/a:http", ClusterIP: netip.MustParseAddr("10.143.0.9"), Proto: TCP, Port: 80, Endpoints: []netip.AddrPort{endpoint(s, 80)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if err := m.Release(testContext(t), "a"); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if err := Purge(o); err != nil {
			t.Fatal(err)
		}
	}
	if after := traces(t, o.Dir); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestSecondManagerIsTurnedAway(t *testing.T) {
	o := testOptions(t)
	open(t, o)
	if _, err := Open(o); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v", err)
	}
}

func TestRestart(t *testing.T) {
	o := testOptions(t)
	m, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	a := acquire(t, m, "a")
	serve(t, a.NetNS, ":80", "a")
	services := []Service{{
		Name: "ns/a:http", ClusterIP: netip.MustParseAddr("10.143.0.9"), Proto: TCP, Port: 80, Endpoints: []netip.AddrPort{endpoint(a, 80)},
	}}
	if err := m.Program(testContext(t), services); err != nil {
		t.Fatal(err)
	}
	if err := m.SetHostPorts(testContext(t), "a", []HostPort{{HostPort: 9090, PodPort: 80, Proto: TCP}}); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if got := mustAsk(t, ownNS, "tcp", "10.143.0.9:80"); !strings.HasPrefix(got, "a") {
		t.Errorf("with no process: %q", got)
	}
	m = open(t, o)
	if all := m.Sandboxes(); len(all) != 1 || all[0].ID != a.ID || all[0].Hostname != "a" || len(all[0].HostPorts) != 1 {
		t.Errorf("adopted %+v", all)
	}
	if got := acquire(t, m, "a"); got.ID != a.ID {
		t.Errorf("got %s, had %s", got.ID, a.ID)
	}
	if b := acquire(t, m, "b"); b.IP == a.IP {
		t.Error("an address was handed out twice")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				t.Logf("%d connections without a gap", n)
				return
			default:
			}
			if _, err := ask(ownNS, "tcp", "10.143.0.9:80"); err != nil {
				t.Errorf("a gap: %v", err)
			}
		}
	})
	for range 20 {
		m.rules.mu.Lock()
		m.rules.stale = true
		m.rules.mu.Unlock()
		if err := m.Program(testContext(t), append(manyServices(50), services...)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if got := mustAsk(t, ownNS, "tcp", "127.0.0.1:9090"); !strings.HasPrefix(got, "a") {
		t.Errorf("host port after restart: %q", got)
	}
}

// TestKilled kills a process at any moment of its work, again and again: the
// next one finds every pod's sandbox whole and nothing else.
func TestKilled(t *testing.T) {
	o := testOptions(t)
	lists := func(m *Manager) int {
		m.pool.mu.Lock()
		defer m.pool.mu.Unlock()
		return len(m.pool.held) + len(m.pool.ready)
	}
	for range 8 {
		held := killedChild(t, o.Dir)
		o.PoolSize = -1
		m, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]Sandbox{}
		for _, s := range m.Sandboxes() {
			have[s.PodUID] = s
			if !whole(o.Dir, s.ID) {
				t.Errorf("%s is not whole", s.ID)
			}
			if _, err := ask(ownNS, "tcp", endpoint(s, 1).String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s does not answer: %v", s.PodUID, err)
			}
		}
		if _, ok := have[held]; !ok {
			t.Errorf("the sandbox of %s is lost", held)
		}
		if links := strings.Count(traces(t, o.Dir), "link sgi"); links != lists(m) {
			t.Errorf("%d links for %d sandboxes", links, lists(m))
		}
		for uid := range have {
			if err := m.Release(testContext(t), uid); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Purge(o); err != nil {
		t.Fatal(err)
	}
}

// killedChild runs a child, kills it at some moment, and returns a pod that
// had a sandbox then.
func killedChild(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SONAGI_TEST_CHILD="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	last, limit := "", 2+rand.N(6)
	for n := 0; n < limit && lines.Scan(); n++ {
		last = lines.Text()
	}
	<-time.After(rand.N(20 * time.Millisecond))
	cmd.Process.Kill()
	for lines.Scan() {
		last = lines.Text()
	}
	cmd.Wait()
	if !strings.HasPrefix(last, "pod-") {
		t.Fatalf("the child said %q", last)
	}
	return last
}

func TestCIDRConflict(t *testing.T) {
	o := testOptions(t)
	neighbourHost(t)
	for _, tt := range []struct {
		pods, services string
		names          string
	}{
		{"198.51.0.0/16", "10.143.0.0/16", "198.51.100.0/24"},
		{"10.142.0.0/16", "198.51.100.0/24", "198.51.100."},
		{"10.142.0.0/16", "10.142.128.0/24", "10.142.128.0/24"},
	} {
		o.PodCIDR, o.ServiceCIDR = netip.MustParsePrefix(tt.pods), netip.MustParsePrefix(tt.services)
		_, err := Open(o)
		if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("%s and %s: got %v", tt.pods, tt.services, err)
		}
	}
	if links := traces(t, o.Dir); strings.Contains(links, "sonagi0") {
		t.Errorf("a refused Open left something behind:\n%s", links)
	}
}

func TestDialIsBounded(t *testing.T) {
	m := open(t, testOptions(t))
	s := acquire(t, m, "a")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	// Nobody has this address and nothing refuses it: the route is the neighbour's.
	neighbourHost(t)
	if _, err := Dial(ctx, s.NetNS, "tcp", "198.51.100.77:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(ctx, "/nowhere", "tcp", "1.2.3.4:1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	serve(t, s.NetNS, "127.0.0.1:8080", "inner")
	c, err := Dial(testContext(t), s.NetNS, "tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("%T cannot be half closed", c)
	}
}
