// SPDX-License-Identifier: Apache-2.0

// Package network holds who reaches whom: pods, Services, the host and the world.
package network

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/sonagi/sonagi/test/platform"
	"github.com/sonagi/sonagi/test/shell"
)

const image = "shell.local/shell:test"

var p *platform.Platform

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "6") // the tests wait more than they work
	os.Exit(platform.Main(loaded{m}, &p, "--deploy", "samples/hello"))
}

// loaded loads the image before the first test.
type loaded struct{ *testing.M }

func (l loaded) Run() int {
	file := filepath.Join(filepath.Dir(p.DataDir), "shell.tar")
	err := shell.Archive(file, image)
	if err == nil {
		err = p.LoadImage(file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return l.M.Run()
}

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("%s is %q, want %q", what, got, want)
	}
}

// client makes a pod from which to ask, and returns what asks.
func client(s *platform.Space) func(command string) (string, error) {
	s.K("run", "client", "--image="+image, "--restart=Never", "--", "tool", "hold")
	s.Ready("client")
	return func(command string) (string, error) {
		return s.Try("exec", "client", "--", "sh", "-c", command)
	}
}

// web makes a Deployment of n replicas that say their names, with a Service.
func web(t *testing.T, s *platform.Space, name string, n int, service string) {
	t.Helper()
	s.Make(fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: %[3]s
        command: [tool, serve, "8080"]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {selector: {app: %[1]s}, ports: [{name: http, port: 80, targetPort: 8080}]%[4]s}
`, name, n, image, service))
	s.K("rollout", "status", "deployment/"+name, "--timeout=90s")
}

// answers asks so many times and counts who answered.
func answers(t *testing.T, ask func(string) (string, error), url string, times int) map[string]int {
	t.Helper()
	out, err := ask(fmt.Sprintf("for i in $(seq %d); do timeout 5 wget -qO- %s || echo failed; done", times, url))
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, line := range strings.Fields(out) {
		count[line]++
	}
	return count
}

func TestServiceBalances(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "balance")
	ask := client(s)
	web(t, s, "web", 3, "")
	ip := s.Field("service/web", ".spec.clusterIP")
	for _, url := range []string{"http://web", "http://web.balance", "http://web.balance.svc", "http://web.balance.svc.cluster.local", "http://" + ip} {
		platform.Eventually(t, 20*time.Second, func() error { _, err := ask("timeout 2 wget -qO- " + url); return err })
		got := answers(t, ask, url, 40)
		if len(got) != 3 || got["failed"] != 0 {
			t.Errorf("%s: %v answered, want all three", url, got)
		}
	}
	// From another namespace and with the search domains of a pod.
	out, err := ask("cat /etc/resolv.conf; nslookup web.balance.svc.cluster.local")
	if err != nil || !strings.Contains(out, "search balance.svc.cluster.local svc.cluster.local cluster.local") || !strings.Contains(out, ip) || !strings.Contains(out, "options ndots:5") {
		t.Errorf("%v\n%s", err, out)
	}

	// The host itself.
	for range 10 {
		want(t, "ClusterIP from the host", get(t, "http://"+ip+"/")[:4], "web-")
	}

	// A pod that is not ready gets nothing, and one that is gone either.
	pods := strings.Fields(s.Field("pod", ".items[?(@.metadata.labels.app=='web')].metadata.name"))
	s.K("exec", pods[0], "--", "touch", "/tmp/sick")
	s.K("wait", "--for=condition=Ready=false", "pod/"+pods[0], "--timeout=30s")
	platform.Eventually(t, 20*time.Second, func() error {
		if got := answers(t, ask, "http://web", 20); got[pods[0]] > 0 || got["failed"] > 0 || len(got) != 2 {
			return fmt.Errorf("answered: %v", got)
		}
		return nil
	})
	s.K("scale", "deployment/web", "--replicas=0")
	s.K("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s")
	platform.Eventually(t, 20*time.Second, func() error {
		out, err := ask("timeout 5 wget -qO- http://web 2>&1")
		if err == nil || !strings.Contains(out, "refused") {
			return fmt.Errorf("a Service without pods: %s, %v; want it refused", out, err)
		}
		return nil
	})
}

func get(t *testing.T, url string) string {
	t.Helper()
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

func TestServiceReachesItself(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "hairpin")
	web(t, s, "web", 1, "")
	pod := s.Field("pod", ".items[0].metadata.name")
	s.Says([]string{pod}, "exec", pod, "--", "timeout", "5", "wget", "-qO-", "http://web")
	if from := s.K("exec", "deploy/web", "--", "wget", "-qO-", "http://web/from"); strings.HasPrefix(from, "127.") {
		t.Errorf("asked from %s", from)
	}
}

func TestHeadlessAndExternalName(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "headless")
	ask := client(s)
	web(t, s, "web", 2, ", clusterIP: None")
	platform.Eventually(t, 20*time.Second, func() error {
		out, err := ask("nslookup -type=a web.headless.svc.cluster.local")
		for _, ip := range strings.Fields(s.Field("pod", ".items[?(@.metadata.labels.app=='web')].status.podIP")) {
			if err == nil && !strings.Contains(out, ip) {
				err = fmt.Errorf("%s is missing in:\n%s", ip, out)
			}
		}
		return err
	})
	if got := answers(t, ask, "http://web:8080", 30); got["failed"] > 0 || len(got) > 2 {
		t.Errorf("a headless Service: %v answered", got)
	}
	out, _ := ask("nslookup -type=srv _http._tcp.web.headless.svc.cluster.local")
	if !strings.Contains(out, "8080") {
		t.Errorf("SRV: %s", out)
	}

	web(t, s, "real", 1, "")
	s.K("create", "service", "externalname", "alias", "--external-name=real.headless.svc.cluster.local")
	platform.Eventually(t, 20*time.Second, func() error { _, err := ask("timeout 5 wget -qO- http://alias"); return err })
	out, _ = ask("nslookup alias.headless.svc.cluster.local")
	if !strings.Contains(out, "real.headless.svc.cluster.local") {
		t.Errorf("ExternalName: %s", out)
	}
	if out, err := ask("nslookup nosuch.headless.svc.cluster.local"); err == nil || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("a name that is not there: %v, %s", err, out)
	}
	ip := s.Field("service/real", ".spec.clusterIP")
	out, _ = ask("nslookup " + ip)
	if !strings.Contains(out, "real.headless.svc.cluster.local") {
		t.Errorf("PTR: %s", out)
	}
}

// elsewhere is an address of this machine that is not loopback.
func elsewhere(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 7))
	if err != nil || len(routes) == 0 || routes[0].Src == nil {
		t.Skip("this machine has no address but loopback")
	}
	return routes[0].Src.String()
}

func TestNodePortOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "nodeport")
	web(t, s, "web", 2, ", type: NodePort")
	port := s.Field("service/web", ".spec.ports[0].nodePort")
	platform.Eventually(t, 10*time.Second, func() error {
		resp, err := http.Get("http://127.0.0.1:" + port + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	want(t, "NodePort", get(t, "http://127.0.0.1:"+port+"/")[:4], "web-")
	if c, err := net.DialTimeout("tcp", net.JoinHostPort(elsewhere(t), port), 2*time.Second); err == nil {
		c.Close()
		t.Error("a NodePort is open to others")
	}
}

func TestPodToPodAndHost(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "podtopod")
	ask := client(s)
	web(t, s, "web", 1, "")
	pod := s.Field("pod", ".items[?(@.metadata.labels.app=='web')].metadata.name")
	ip := s.Field("pod/"+pod, ".status.podIP")
	me := s.Field("pod/client", ".status.podIP")
	out, err := ask("timeout 5 wget -qO- http://" + ip + ":8080/from")
	if err != nil || !strings.HasPrefix(out, me+":") {
		t.Errorf("pod to pod: %s, %v; want it to come from %s", out, err, me)
	}
	want(t, "host to pod", get(t, "http://"+ip+":8080/"), pod)
	if out, err := ask("ping -c 1 -W 2 " + ip); err != nil {
		t.Errorf("ping: %v, %s", err, out)
	}
	// The pod's address is its name in cluster DNS as well.
	if out, err := ask("timeout 5 wget -qO- http://" + strings.ReplaceAll(ip, ".", "-") + ".podtopod.pod.cluster.local:8080/"); err != nil {
		t.Errorf("pod record: %v, %s", err, out)
	}
}

func TestUDP(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "udp")
	ask := client(s)
	s.K("run", "echo", "--image="+image, "--restart=Never", "--", "tool", "udp", "9000")
	s.K("expose", "pod", "echo", "--port=9000", "--protocol=UDP")
	s.Ready("echo")
	platform.Eventually(t, 20*time.Second, func() error {
		out, err := ask("tool ask echo:9000")
		if err == nil && strings.TrimSpace(out) != "echo" {
			err = fmt.Errorf("the answer is %q", out)
		}
		return err
	})
}

func TestHostPortAndHostNetwork(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "hostport")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	s.Make(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: %s, command: [tool, serve, "8080"], ports: [{containerPort: 8080, hostPort: %d}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: onhost}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: %[1]s, command: [tool, hold]}]
`, image, port))
	s.Ready("mapped", "onhost")
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	platform.Eventually(t, 10*time.Second, func() error {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	want(t, "hostPort", get(t, url), "mapped")
	want(t, "podIP of hostNetwork", s.Field("pod/onhost", ".status.podIP"), s.Field("pod/onhost", ".status.hostIP"))
	want(t, "from the host's network", s.K("exec", "onhost", "--", "wget", "-qO-", url), "mapped")
	if out := s.K("exec", "onhost", "--", "nslookup", "kubernetes.default.svc.cluster.local"); !strings.Contains(out, "Address") {
		t.Errorf("cluster DNS on the host's network: %s", out)
	}
	s.K("delete", "pod", "mapped")
	if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
		c.Close()
		t.Error("the port stayed open")
	}
}

// outside is a machine beyond the host: a namespace of its own with one link to
// the host, and no way to pods. It returns its address and what it says it saw.
func outside(t *testing.T) (address string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	there, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netns.Set(home) }()
	_ = netns.Set(home)
	near, far := fmt.Sprintf("outn%d", os.Getpid()%100000), fmt.Sprintf("outf%d", os.Getpid()%100000)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: far, PeerNamespace: netlink.NsFd(there)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth); there.Close() })
	up(t, near, "203.0.113.1/30")
	if err := netns.Set(there); err != nil {
		t.Fatal(err)
	}
	up(t, far, "203.0.113.2/30")
	l, err := net.Listen("tcp", "203.0.113.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "outside saw", r.RemoteAddr) }))
	}()
	return l.Addr().String()
}

func up(t *testing.T, link, address string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(address)
	if err == nil {
		err = netlink.AddrAdd(l, a)
	}
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestEgress(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "egress")
	ask := client(s)
	at := outside(t)
	out, err := ask("timeout 5 wget -qO- http://" + at + "/")
	if err != nil || !strings.Contains(out, "outside saw 203.0.113.1:") {
		t.Errorf("%s, %v; want the host's address seen", out, err)
	}
}

func TestOutsideNames(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "names")
	ask := client(s)
	// A name that the host itself knows is asked of the host's resolvers; that
	// there is none is an answer as well, and a machine without network has no answer.
	out, _ := ask("nslookup -type=a nosuch.invalid")
	if !regexp.MustCompile(`NXDOMAIN|SERVFAIL|REFUSED`).MatchString(out) {
		t.Errorf("a name that cannot be: %s", out)
	}
	if _, err := net.LookupHost("proxy.golang.org"); err == nil {
		if out, err := ask("nslookup -type=a proxy.golang.org"); err != nil || !strings.Contains(out, "Address") {
			t.Errorf("a name outside: %v, %s", err, out)
		}
	}
}

func TestKnativeServiceFromPod(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "knative")
	ask := client(s)
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: inner, labels: {networking.knative.dev/visibility: cluster-local}}\nspec:\n  template:\n    spec:\n      containers: [{image: " + p.Registry + "/hello, env: [{name: RESPONSE, value: from inside}]}]\n")
	s.K("wait", "--for=condition=Ready", "ksvc/inner", "--timeout=60s")
	for url, body := range map[string]string{
		"http://inner.knative":                   "from inside",
		"http://inner.knative.svc":               "from inside",
		"http://inner.knative.svc.cluster.local": "from inside",
		"http://hello.default":                   "Hello Openshift!",
		"http://hello.default.svc.cluster.local": "Hello Openshift!",
		p.ServiceURL("hello", "default"):         "Hello Openshift!",
	} {
		var out string
		platform.Eventually(t, 20*time.Second, func() (err error) { out, err = ask("timeout 10 wget -qO- " + url); return err })
		want(t, url, out, body)
	}
	want(t, "address", s.Field("ksvc/inner", ".status.url"), "http://inner.knative.svc.cluster.local")
	if status, _, err := p.Get(t.Context(), "inner.knative.svc.cluster.local", "/"); err != nil || status != 404 {
		t.Errorf("a cluster-local service answers outside: %d, %v", status, err)
	}
}
