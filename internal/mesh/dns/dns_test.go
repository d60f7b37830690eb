// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

const insideEnv = "SONAGI_TEST_HOST"

// TestMain runs the tests in a network of their own, where port 53 is free.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if lo, err := netlink.LinkByName("lo"); err != nil || netlink.LinkSetUp(lo) != nil {
			fmt.Fprintln(os.Stderr, "setting lo up failed", err)
			os.Exit(1)
		}
	}
	if os.Getenv(insideEnv) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "making the test's host:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root for a network namespace")
	}
}

func ptr[T any](v T) *T { return &v }

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: ports},
	}
}

func alias(name, target string) *corev1.Service {
	s := service(name, "")
	s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, target
	return s
}

func part(service string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: service + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: ptr("sql"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(5432))}},
	}
}

func endpoint(ip, hostname string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if hostname != "" {
		e.Hostname = &hostname
	}
	return e
}

func objects() []runtime.Object {
	http := corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}
	many := part("many")
	many.Ports = nil
	for i := range 200 {
		many.Endpoints = append(many.Endpoints, endpoint(fmt.Sprintf("10.42.9.%d", i), "", true))
	}
	return []runtime.Object{
		service("web", "10.43.0.5", http, corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}),
		service("db", corev1.ClusterIPNone, corev1.ServicePort{Name: "sql", Port: 5432}),
		part("db", endpoint("10.42.0.2", "db-0", true), endpoint("10.42.0.3", "", true), endpoint("10.42.0.4", "db-2", false)),
		service("empty", corev1.ClusterIPNone),
		service("many", corev1.ClusterIPNone), many,
		alias("out", "www.example.test"), alias("in", "web.ns.svc.cluster.local"),
		alias("loop", "loop.ns.svc.cluster.local"), alias("lost", "nowhere.example.test"),
	}
}

// An upstream is a resolver of the machine.
type upstream struct{ asked atomic.Int32 }

func (u *upstream) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	u.asked.Add(1)
	r := new(dns.Msg)
	r.SetReply(q)
	r.RecursionAvailable = true
	name := q.Question[0].Name
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	switch strings.ToLower(name) {
	case "www.example.test.":
		if q.Question[0].Qtype == dns.TypeA {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.IP{192, 0, 2, 80}}}
		} else {
			r.Ns = []dns.RR{soa("example.test.", "example.test.")}
		}
	case "long.example.test.":
		r.Truncated = udp
		for i := range 300 {
			if !udp {
				r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.IP{192, 0, byte(i / 250), byte(i % 250)}})
			}
		}
	case "broken.example.test.":
		r.Rcode = dns.RcodeServerFailure
	default:
		r.Rcode = dns.RcodeNameError
		r.Ns = []dns.RR{soa("example.test.", "example.test.")}
	}
	w.WriteMsg(r)
}

func startUpstream(t testing.TB, ip string) *upstream {
	t.Helper()
	u := &upstream{}
	for _, network := range []string{"udp", "tcp"} {
		up := make(chan struct{})
		s := &dns.Server{Addr: ip + ":53", Net: network, Handler: u, NotifyStartedFunc: func() { close(up) }}
		go s.ListenAndServe()
		select {
		case <-up:
		case <-time.After(5 * time.Second):
			t.Fatal("the upstream does not start")
		}
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

func start(t testing.TB, resolvConf string, objs ...runtime.Object) *Server {
	t.Helper()
	needRoot(t)
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte(resolvConf), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{
		Informers: informers.NewSharedInformerFactory(fake.NewClientset(objs...), 0),
		Listen:    []string{"127.0.0.10:53"},
		Networks:  []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
		Host: func(name string) (netip.Addr, bool) {
			return netip.MustParseAddr("10.42.0.1"), strings.HasSuffix(name, ".sonagi.localhost")
		},
		ResolvConf: file,
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	runServer(t, s)
	return s
}

func runServer(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	task := s.Task()
	go func() { ended <- task.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	limit, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := task.Ready(limit); err != nil {
		t.Fatal(err)
	}
}

// ask returns the answer as "RCODE: record; record", sorted.
func ask(t testing.TB, network, name, kind string) string {
	t.Helper()
	r := exchangeWith(t, network, name, kind)
	var list []string
	for _, rr := range r.Answer {
		words := strings.Fields(rr.String())
		list = append(list, strings.Join(append(words[3:4], words[4:]...), " "))
	}
	slices.Sort(list)
	return strings.TrimSpace(dns.RcodeToString[r.Rcode] + " " + strings.Join(list, "; "))
}

func exchangeWith(t testing.TB, network, name, kind string) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, dns.StringToType[kind])
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(q, "127.0.0.10:53")
	if err != nil {
		t.Fatalf("%s %s: %v", kind, name, err)
	}
	return r
}

func TestNames(t *testing.T) {
	needRoot(t)
	startUpstream(t, "127.0.0.11")
	start(t, "nameserver 127.0.0.10\nnameserver 127.0.0.11\n", objects()...)
	for _, tt := range []struct{ kind, name, want string }{
		{"A", "web.ns.svc.cluster.local.", "NOERROR A 10.43.0.5"},
		{"A", "WEB.ns.SVC.cluster.Local.", "NOERROR A 10.43.0.5"},
		{"AAAA", "web.ns.svc.cluster.local.", "NOERROR"},
		{"MX", "web.ns.svc.cluster.local.", "NOERROR"},
		{"A", "nobody.ns.svc.cluster.local.", "NXDOMAIN"},
		{"A", "web.other.svc.cluster.local.", "NXDOMAIN"},
		{"A", "x.web.ns.svc.cluster.local.", "NXDOMAIN"},
		{"A", "ns.svc.cluster.local.", "NOERROR"},
		{"A", "svc.cluster.local.", "NOERROR"},
		{"A", "cluster.local.", "NOERROR"},
		{"A", "x.cluster.local.", "NXDOMAIN"},
		{"A", "web.ns.svc.cluster.local.ns.svc.cluster.local.", "NXDOMAIN"},
		{"SRV", "_http._tcp.web.ns.svc.cluster.local.", "NOERROR SRV 0 1 80 web.ns.svc.cluster.local."},
		{"SRV", "_dns._udp.web.ns.svc.cluster.local.", "NOERROR SRV 0 1 53 web.ns.svc.cluster.local."},
		{"SRV", "_http._udp.web.ns.svc.cluster.local.", "NXDOMAIN"},
		{"A", "_http._tcp.web.ns.svc.cluster.local.", "NOERROR"},
		{"A", "_tcp.web.ns.svc.cluster.local.", "NOERROR"},
		{"A", "_sctp.web.ns.svc.cluster.local.", "NXDOMAIN"},
		{"SRV", "web.ns.svc.cluster.local.", "NOERROR SRV 0 1 53 web.ns.svc.cluster.local.; SRV 0 1 80 web.ns.svc.cluster.local."},
		{"PTR", "5.0.43.10.in-addr.arpa.", "NOERROR PTR web.ns.svc.cluster.local."},
		{"A", "db.ns.svc.cluster.local.", "NOERROR A 10.42.0.2; A 10.42.0.3"},
		{"A", "db-0.db.ns.svc.cluster.local.", "NOERROR A 10.42.0.2"},
		{"A", "db-2.db.ns.svc.cluster.local.", "NXDOMAIN"},
		{"A", "10-42-0-3.db.ns.svc.cluster.local.", "NOERROR A 10.42.0.3"},
		{"SRV", "_sql._tcp.db.ns.svc.cluster.local.", "NOERROR SRV 0 1 5432 10-42-0-3.db.ns.svc.cluster.local.; SRV 0 1 5432 db-0.db.ns.svc.cluster.local."},
		{"PTR", "2.0.42.10.in-addr.arpa.", "NOERROR PTR db-0.db.ns.svc.cluster.local."},
		{"PTR", "77.0.42.10.in-addr.arpa.", "NXDOMAIN"},
		{"PTR", "1.2.0.192.in-addr.arpa.", "NXDOMAIN"},
		{"A", "empty.ns.svc.cluster.local.", "NXDOMAIN"},
		{"A", "10-42-0-5.ns.pod.cluster.local.", "NOERROR A 10.42.0.5"},
		{"AAAA", "10-42-0-5.ns.pod.cluster.local.", "NOERROR"},
		{"A", "10-42-0-5.other.pod.cluster.local.", "NXDOMAIN"},
		{"A", "10-42-0.ns.pod.cluster.local.", "NXDOMAIN"},
		{"TXT", "dns-version.cluster.local.", `NOERROR TXT "1.1.0"`},
		{"NS", "cluster.local.", "NOERROR NS ns.dns.cluster.local."},
		{"CNAME", "out.ns.svc.cluster.local.", "NOERROR CNAME www.example.test."},
		{"A", "out.ns.svc.cluster.local.", "NOERROR A 192.0.2.80; CNAME www.example.test."},
		{"AAAA", "out.ns.svc.cluster.local.", "NOERROR CNAME www.example.test."},
		{"A", "in.ns.svc.cluster.local.", "NOERROR A 10.43.0.5; CNAME web.ns.svc.cluster.local."},
		{"A", "lost.ns.svc.cluster.local.", "NXDOMAIN CNAME nowhere.example.test."},
		{"A", "hello.default.sonagi.localhost.", "NOERROR A 10.42.0.1"},
		{"AAAA", "hello.default.sonagi.localhost.", "NOERROR"},
		{"A", "www.example.test.", "NOERROR A 192.0.2.80"},
		{"AAAA", "www.example.test.", "NOERROR"},
		{"A", "nowhere.example.test.", "NXDOMAIN"},
		{"A", "broken.example.test.", "SERVFAIL"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := ask(t, network, tt.name, tt.kind); got != tt.want {
				t.Errorf("%s %s %s: got %q, want %q", network, tt.kind, tt.name, got, tt.want)
			}
		}
	}
	if got := ask(t, "udp", "loop.ns.svc.cluster.local.", "A"); !strings.HasPrefix(got, "SERVFAIL") {
		t.Errorf("a loop: %q", got)
	}
}

func TestNegativeAnswersSayForHowLong(t *testing.T) {
	start(t, "", objects()...)
	for _, name := range []string{"nobody.ns.svc.cluster.local.", "svc.cluster.local."} {
		r := exchangeWith(t, "udp", name, "A")
		if len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA || r.Ns[0].Header().Ttl != ttl {
			t.Errorf("%s: authority %v", name, r.Ns)
		}
		if !r.Authoritative || !r.RecursionAvailable {
			t.Errorf("%s: flags %v", name, r.MsgHdr)
		}
	}
}

func TestTruncation(t *testing.T) {
	needRoot(t)
	startUpstream(t, "127.0.0.11")
	start(t, "nameserver 127.0.0.11\n", objects()...)
	for _, name := range []string{"many.ns.svc.cluster.local.", "long.example.test."} {
		r := exchangeWith(t, "udp", name, "A")
		if r.Compress = true; !r.Truncated || r.Len() > dns.MinMsgSize {
			t.Errorf("%s: %d octets by UDP, shortened: %v", name, r.Len(), r.Truncated)
		}
		if r := exchangeWith(t, "tcp", name, "A"); r.Truncated || len(r.Answer) < 200 {
			t.Errorf("%s: %d records by TCP", name, len(r.Answer))
		}
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		q.SetEdns0(1232, false)
		r, _, err := (&dns.Client{UDPSize: 1232}).Exchange(q, "127.0.0.10:53")
		if err != nil {
			t.Fatal(err)
		}
		if r.IsEdns0() == nil || len(r.Answer) < 40 {
			t.Errorf("%s: %d records with room for 1232 octets", name, len(r.Answer))
		}
	}
}

func TestOddQueries(t *testing.T) {
	start(t, "", objects()...)
	for name, change := range map[string]func(*dns.Msg){
		"NOTIMP":   func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate },
		"FORMERR":  func(q *dns.Msg) { q.Question = nil },
		"REFUSED":  func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS },
		"BADVERS":  func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) },
		"SERVFAIL": func(q *dns.Msg) { q.Question[0].Name = "www.example.test." },
	} {
		q := new(dns.Msg)
		q.SetQuestion("web.ns.svc.cluster.local.", dns.TypeA)
		change(q)
		r, err := dns.Exchange(q, "127.0.0.10:53")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := dns.RcodeToString[r.Rcode]; got != name && !(name == "BADVERS" && r.Rcode == dns.RcodeBadVers) {
			t.Errorf("got %s, want %s", got, name)
		}
	}
}

func TestResolversChange(t *testing.T) {
	needRoot(t)
	first, second := startUpstream(t, "127.0.0.11"), startUpstream(t, "127.0.0.12")
	s := start(t, "search x\nnameserver 127.0.0.13\nnameserver 127.0.0.11\n", objects()...)
	for range 3 {
		if got := ask(t, "udp", "www.example.test.", "A"); got != "NOERROR A 192.0.2.80" {
			t.Fatal(got)
		}
	}
	if n := first.asked.Load(); n != 1 {
		t.Errorf("asked %d times for a name that may be remembered", n)
	}
	if err := os.WriteFile(s.forward.file, []byte("nameserver 127.0.0.12 # another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	limit := time.Now().Add(10 * time.Second)
	for n := 0; second.asked.Load() == 0; n++ {
		ask(t, "udp", fmt.Sprintf("x%d.example.test.", n), "A")
		if time.Now().After(limit) {
			t.Fatal("the new resolver is not asked")
		}
	}
	before := second.asked.Load()
	ask(t, "udp", "www.example.test.", "A")
	if second.asked.Load() == before {
		t.Error("what the old resolver said is still remembered")
	}
}

func TestDigAndGo(t *testing.T) {
	start(t, "", objects()...)
	if dig, err := exec.LookPath("dig"); err != nil {
		t.Log("no dig on this machine")
	} else {
		out, err := exec.Command(dig, "@127.0.0.10", "+short", "db-0.db.ns.svc.cluster.local").CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != "10.42.0.2" {
			t.Errorf("dig: %q, %v", got, err)
		}
		out, err = exec.Command(dig, "@127.0.0.10", "many.ns.svc.cluster.local").CombinedOutput()
		if got := string(out); err != nil || !strings.Contains(got, "ANSWER: 200") {
			t.Errorf("dig: %s, %v", got, err)
		}
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.10:53")
	}}
	if got, err := r.LookupHost(t.Context(), "many.ns.svc.cluster.local."); err != nil || len(got) != 200 {
		t.Errorf("Go: %d, %v", len(got), err)
	}
	if _, got, err := r.LookupSRV(t.Context(), "sql", "tcp", "db.ns.svc.cluster.local."); err != nil || len(got) != 2 {
		t.Errorf("Go: %v, %v", got, err)
	}
	if got, err := r.LookupAddr(t.Context(), "10.43.0.5"); err != nil || !slices.Equal(got, []string{"web.ns.svc.cluster.local."}) {
		t.Errorf("Go: %v, %v", got, err)
	}
}

func TestManyQueriesAtOnce(t *testing.T) {
	needRoot(t)
	startUpstream(t, "127.0.0.11")
	start(t, "nameserver 127.0.0.11\n", objects()...)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 20 {
				if got := ask(t, "udp", "web.ns.svc.cluster.local.", "A"); got != "NOERROR A 10.43.0.5" {
					t.Error(got)
				}
				if got := ask(t, "udp", fmt.Sprintf("x%d-%d.example.test.", i, j), "A"); got != "NXDOMAIN" {
					t.Error(got)
				}
			}
		})
	}
	wg.Wait()
}

func TestParseResolvers(t *testing.T) {
	text := "# c\nsearch a b\nnameserver 10.42.0.1\nnameserver 127.0.0.53\nnameserver\t8.8.8.8 # c\nnameserver x\nnameserver fe80::1%eth0\noptions edns0\n"
	got := parseResolvers(text, []netip.Addr{netip.MustParseAddr("10.42.0.1")})
	want := []string{"127.0.0.53:53", "8.8.8.8:53", "[fe80::1%eth0]:53"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMemory(t *testing.T) {
	m := newMemory()
	now := time.Unix(1000, 0)
	msg := func(ttl uint32) *dns.Msg {
		r := new(dns.Msg)
		r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA, Ttl: ttl}, A: net.IP{1, 2, 3, 4}}}
		return r
	}
	key := func(i int) memoryKey { return memoryKey{name: fmt.Sprint(i)} }
	m.put(key(0), msg(10), now)
	if got := m.get(key(0), now.Add(4*time.Second)); got == nil || got.Answer[0].Header().Ttl != 6 {
		t.Errorf("after four seconds: %v", got)
	}
	if got := m.get(key(0), now.Add(10*time.Second)); got != nil {
		t.Errorf("after its time: %v", got)
	}
	m.put(key(1), msg(0), now)
	if m.get(key(1), now) != nil {
		t.Error("remembered what may not be")
	}
	for i := range 2 * remembered {
		m.put(key(i), msg(100), now)
	}
	if n := len(m.answers); n > remembered {
		t.Errorf("%d answers", n)
	}
}

func BenchmarkQuery(b *testing.B) {
	start(b, "", objects()...)
	q := new(dns.Msg)
	q.SetQuestion("web.ns.svc.cluster.local.", dns.TypeA)
	c, err := dns.Dial("udp", "127.0.0.10:53")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if err := c.WriteMsg(q); err != nil {
			b.Fatal(err)
		}
		if _, err := c.ReadMsg(); err != nil {
			b.Fatal(err)
		}
	}
}
