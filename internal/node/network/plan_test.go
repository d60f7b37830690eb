// SPDX-License-Identifier: Apache-2.0

package network

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what the plan says into the golden files")

// TestPlan reads steps and what each changes. A step has lines like
//
//	set NAME CLUSTERIP PROTO PORT [ext=IP] [node=PORT] [affinity=TIME] -> ENDPOINT...
//	gone NAME
//	pod UID IP [HOSTIP:]HOSTPORT:PODPORT/PROTO...
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b := newBook()
			for i := 0; i+1 < len(archive.Files); i += 2 {
				got := step(t, b, string(archive.Files[i].Data))
				want := &archive.Files[i+1]
				if *update {
					want.Data = []byte(got)
				} else if got != string(want.Data) {
					t.Errorf("%s: got\n%s\nwant\n%s", archive.Files[i].Name, got, want.Data)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func step(t *testing.T, b *book, text string) string {
	t.Helper()
	var changed []Service
	var gone []string
	out := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "set":
			changed = append(changed, readService(t, words[1:]))
		case words[0] == "gone":
			gone = append(gone, words[1])
		case words[0] == "pod":
			out += readPod(b, words[1:])
		default:
			t.Fatalf("%q", line)
		}
	}
	return out + b.update(changed, gone).String()
}

func readService(t *testing.T, words []string) Service {
	t.Helper()
	s := Service{Name: words[0], ClusterIP: netip.MustParseAddr(words[1]), Proto: readProto(words[2])}
	fmt.Sscan(words[3], &s.Port)
	behind := false
	for _, w := range words[4:] {
		key, value, _ := strings.Cut(w, "=")
		switch {
		case w == "->":
			behind = true
		case behind:
			s.Endpoints = append(s.Endpoints, netip.MustParseAddrPort(w))
		case key == "ext":
			s.ExternalIPs = append(s.ExternalIPs, netip.MustParseAddr(value))
		case key == "node":
			fmt.Sscan(value, &s.NodePort)
		case key == "affinity":
			s.Affinity, _ = time.ParseDuration(value)
		default:
			t.Fatalf("%q", w)
		}
	}
	return s
}

func readProto(s string) Proto {
	if s == "udp" {
		return UDP
	}
	return TCP
}

func readPod(b *book, words []string) string {
	var ports []HostPort
	for _, w := range words[2:] {
		text, proto, _ := strings.Cut(w, "/")
		h := HostPort{Proto: readProto(proto)}
		parts := strings.Split(text, ":")
		if len(parts) == 3 {
			h.HostIP, parts = netip.MustParseAddr(parts[0]), parts[1:]
		}
		fmt.Sscan(parts[0], &h.HostPort)
		fmt.Sscan(parts[1], &h.PodPort)
		ports = append(ports, h)
	}
	if err := b.taken(words[0], ports); err != nil {
		return err.Error() + "\n"
	}
	return b.setPod(words[0], netip.MustParseAddr(words[1]), ports).String()
}

// TestStepsAddUp: whatever the order of changes, making them one by one leads
// to what writing everything at once leads to.
func TestStepsAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b, have := newBook(), newModel()
		for range 30 {
			if r.IntN(4) == 0 {
				have.apply(t, b.setPod(fmt.Sprint("pod", r.IntN(3)), randomAddr(r), randomPorts(r)))
				continue
			}
			var changed []Service
			var gone []string
			for n := range 4 {
				switch r.IntN(3) {
				case 0:
					changed = append(changed, randomService(r, fmt.Sprint("s", n)))
				case 1:
					gone = append(gone, fmt.Sprint("s", n))
				}
			}
			have.apply(t, b.update(changed, gone))
		}
		want := newModel()
		want.apply(t, b.all())
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("steps lead to\n%+v\nall at once to\n%+v", have, want)
		}
	}
}

// A model is what the kernel would hold.
type model struct {
	elements elements
	chains   map[string]string
}

func newModel() *model { return &model{newElements(), map[string]string{}} }

func (m *model) apply(t *testing.T, c change) {
	t.Helper()
	take(t, m.elements.services, c.out.services)
	take(t, m.elements.nodePorts, c.out.nodePorts)
	take(t, m.elements.refused, c.out.refused)
	take(t, m.elements.hairpins, c.out.hairpins)
	take(t, m.elements.hostPorts, c.out.hostPorts)
	take(t, m.elements.anyHostPorts, c.out.anyHostPorts)
	for _, name := range c.gone {
		if _, ok := m.chains[name]; !ok {
			t.Fatalf("chain %s removed that is not there", name)
		}
		delete(m.chains, name)
	}
	for _, ch := range c.rewritten {
		if _, ok := m.chains[ch.name]; ok == c.fresh[ch.name] {
			t.Fatalf("chain %s: there %v, fresh %v", ch.name, ok, c.fresh[ch.name])
		}
		m.chains[ch.name] = ch.String()
	}
	add(t, m.elements.services, c.in.services)
	add(t, m.elements.nodePorts, c.in.nodePorts)
	add(t, m.elements.refused, c.in.refused)
	add(t, m.elements.hairpins, c.in.hairpins)
	add(t, m.elements.hostPorts, c.in.hostPorts)
	add(t, m.elements.anyHostPorts, c.in.anyHostPorts)
	for v, chain := range m.elements.services {
		if _, ok := m.chains[chain]; !ok {
			t.Fatalf("%s leads to chain %s that is not there", v, chain)
		}
	}
}

func take[K, V comparable](t *testing.T, from, what map[K]V) {
	t.Helper()
	for k, v := range what {
		if have, ok := from[k]; !ok || have != v {
			t.Fatalf("element %v : %v removed, there is %v", k, v, have)
		}
		delete(from, k)
	}
}

func add[K, V comparable](t *testing.T, to, what map[K]V) {
	t.Helper()
	for k := range what {
		if _, ok := to[k]; ok {
			t.Fatalf("element %v added twice", k)
		}
	}
	maps.Copy(to, what)
}

func randomAddr(r *rand.Rand) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(r.IntN(6))}) }

func randomPorts(r *rand.Rand) []HostPort {
	var ports []HostPort
	for range r.IntN(3) {
		// Of its own for each draw: two pods with one port are refused earlier.
		ports = append(ports, HostPort{HostPort: uint16(r.Uint32()), PodPort: 80, Proto: TCP})
	}
	return ports
}

func randomService(r *rand.Rand, name string) Service {
	s := Service{
		Name: name, ClusterIP: netip.AddrFrom4([4]byte{10, 43, 0, byte(r.IntN(3))}), Proto: TCP, Port: uint16(80 + r.IntN(2)),
	}
	for range r.IntN(3) {
		s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(randomAddr(r), 8080))
	}
	if r.IntN(2) == 0 {
		s.NodePort = uint16(30000 + r.IntN(2))
	}
	if r.IntN(2) == 0 {
		s.ExternalIPs = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(2))})}
	}
	return s
}

func TestAddresses(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAddresses(netip.MustParsePrefix("10.0.0.0/29"), time.Minute, netip.MustParseAddr("10.0.0.1"))
	var got []string
	for range 5 {
		addr, err := a.take(now)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, addr.String())
	}
	if want := "[10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	a.put(netip.MustParseAddr("10.0.0.4"), now)
	a.put(netip.MustParseAddr("10.0.0.4"), now) // twice is once
	if _, err := a.take(now.Add(59 * time.Second)); err == nil || !strings.Contains(err.Error(), "1 released less than 1m0s ago") {
		t.Errorf("got %v", err)
	}
	if addr, err := a.take(now.Add(time.Minute)); err != nil || addr.String() != "10.0.0.4" {
		t.Errorf("got %v, %v", addr, err)
	}
	a.put(netip.MustParseAddr("10.0.0.2"), now)
	a.put(netip.MustParseAddr("10.0.0.5"), now)
	if addr, _ := a.take(now.Add(time.Hour)); addr.String() != "10.0.0.5" {
		t.Errorf("got %v: not the one after the last", addr)
	}
}

func TestSysctlFile(t *testing.T) {
	for name, want := range map[string]string{
		"net.core.somaxconn": "net/core/somaxconn", "net/core/somaxconn": "net/core/somaxconn",
		"net.ipv4.conf.eth0/1.rp_filter": "net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter": "net/ipv4/conf/eth0.1/rp_filter",
		"x": "", "a..b": "", "net.//.x": "", "": "", "/net/x": "",
	} {
		if got, _ := sysctlFile(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
