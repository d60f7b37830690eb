// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// An authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.key, a.cert = a.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(name string, c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	c.Subject, c.SerialNumber = pkix.Name{CommonName: name}, big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	must(a.t, err)
	cert, err := x509.ParseCertificate(der)
	must(a.t, err)
	return key, cert
}

func (a *authority) pair(name string, usage x509.ExtKeyUsage) tls.Certificate {
	key, cert := a.sign(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// A kubelet is a rig whose API is asked.
type kubelet struct {
	*rig
	base     string
	ca       *authority
	proxyCA  *authority
	apiCert  tls.Certificate
	asServer *http.Client
}

func newKubelet(t *testing.T) *kubelet {
	k := &kubelet{ca: newAuthority(t), proxyCA: newAuthority(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := l.Addr().String()
	l.Close()
	server := k.ca.pair("kubelet", x509.ExtKeyUsageServerAuth)
	k.rig = newRig(t, func(o *Options) {
		o.API = API{
			Listen: []string{address}, Certificate: func() (*tls.Certificate, error) { return &server, nil },
			ClientCAs: k.ca.pool(), ClientNames: []string{"apiserver"},
			FrontProxyCAs: k.proxyCA.pool(), FrontProxyNames: []string{"front-proxy"},
		}
	})
	k.base = "https://" + address
	k.apiCert = k.ca.pair("apiserver", x509.ExtKeyUsageClientAuth)
	k.asServer = k.as(k.apiCert)
	return k
}

func (k *kubelet) as(c tls.Certificate) *http.Client {
	config := &tls.Config{RootCAs: k.ca.pool()}
	if c.PrivateKey != nil {
		config.Certificates = []tls.Certificate{c}
	}
	t := &http.Transport{TLSClientConfig: config}
	k.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func (k *kubelet) get(c *http.Client, path string) (int, string) {
	k.t.Helper()
	resp, err := c.Get(k.base + path)
	must(k.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(k.t, err)
	return resp.StatusCode, string(b)
}

// config is that of a client which is the API server.
func (k *kubelet) config() *rest.Config {
	key, err := x509.MarshalECPrivateKey(k.apiCert.PrivateKey.(*ecdsa.PrivateKey))
	must(k.t, err)
	encode := func(kind string, b []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
	}
	return &rest.Config{Host: k.base, TLSClientConfig: rest.TLSClientConfig{
		CAData: encode("CERTIFICATE", k.ca.cert.Raw), CertData: encode("CERTIFICATE", k.apiCert.Certificate[0]), KeyData: encode("EC PRIVATE KEY", key),
	}}
}

func TestKubeletAPI(t *testing.T) {
	k := newKubelet(t)
	k.apply(`
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: app
    command: [sh, -c, "echo one; echo two >&2; echo three; exec httpd -f -p 8080 -h /etc"]
    readinessProbe: {tcpSocket: {port: 8080}}
  - {name: in, stdin: true, command: [sh, -c, "while read x; do echo got $x; done"]}
`)
	k.awaitReady("web")
	t.Run("who may ask", k.whoMayAsk)
	t.Run("logs", k.logs)
	t.Run("exec", k.execs)
	t.Run("attach", k.attaches)
	t.Run("port-forward", k.forwards)
	t.Run("stats", k.stats)
	t.Run("metrics", k.metrics)
	t.Run("previous logs", k.previousLogs)
}

func (k *kubelet) whoMayAsk(t *testing.T) {
	other := newAuthority(t)
	for name, tt := range map[string]struct {
		client *http.Client
		path   string
		want   int
	}{
		"nobody":                  {k.as(tls.Certificate{}), "/pods", 401},
		"a stranger":              {k.as(other.pair("apiserver", x509.ExtKeyUsageClientAuth)), "/pods", 401},
		"a server's certificate":  {k.as(k.ca.pair("apiserver", x509.ExtKeyUsageServerAuth)), "/pods", 401},
		"somebody else":           {k.as(k.ca.pair("alice", x509.ExtKeyUsageClientAuth)), "/pods", 403},
		"the API server":          {k.asServer, "/healthz", 200},
		"no such path":            {k.asServer, "/nothing", 404},
		"the API server, metrics": {k.asServer, "/apis/metrics.k8s.io/v1beta1", 401},
		"the front proxy":         {k.as(k.proxyCA.pair("front-proxy", x509.ExtKeyUsageClientAuth)), "/apis/metrics.k8s.io/v1beta1", 200},
		"another front proxy":     {k.as(k.proxyCA.pair("alice", x509.ExtKeyUsageClientAuth)), "/apis/metrics.k8s.io/v1beta1", 403},
		"the front proxy, pods":   {k.as(k.proxyCA.pair("front-proxy", x509.ExtKeyUsageClientAuth)), "/pods", 401},
	} {
		if got, body := k.get(tt.client, tt.path); got != tt.want {
			t.Errorf("%s: got %d %s, want %d", name, got, body, tt.want)
		}
	}
}

func (k *kubelet) logs(t *testing.T) {
	const path = "/containerLogs/default/web/app"
	eventually(t, func() bool { _, b := k.get(k.asServer, path); return strings.Count(b, "\n") == 3 })
	for query, want := range map[string]string{
		"":                  "one\ntwo\nthree\n",
		"?tailLines=1":      "three\n",
		"?stream=Stderr":    "two\n",
		"?limitBytes=5":     "one\nt",
		"?sinceSeconds=600": "one\ntwo\nthree\n",
	} {
		code, got := k.get(k.asServer, path+query)
		last := query == "?tailLines=1" && strings.Count(got, "\n") == 1
		if query == "?stream=Stderr" && got == want || code == 200 && (last || len(got) == len(want)) {
			continue // lines of the two streams may change places
		}
		t.Errorf("%s: got %d %q", query, code, got)
	}
	for path, want := range map[string]int{
		"/containerLogs/default/none/app": 404, "/containerLogs/default/web/none": 404,
		path + "?tailLines=x": 422, path + "?previous=true": 400,
	} {
		if code, body := k.get(k.asServer, path); code != want {
			t.Errorf("%s: got %d %s", path, code, body)
		}
	}
	k.follow(t)
}

func (k *kubelet) follow(t *testing.T) {
	k.rig.t = t
	k.apply(`
metadata: {name: talks}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [sh, -c, "for i in 1 2 3; do echo $i; sleep 0.2; done"]}]
`)
	k.await("talks", "running", func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending })
	code, got := k.get(k.asServer, "/containerLogs/default/talks/app?follow=true")
	if code != 200 || got != "1\n2\n3\n" {
		t.Errorf("got %d %q", code, got)
	}
}

func (k *kubelet) executor(t *testing.T, path string, q url.Values) remotecommand.Executor {
	t.Helper()
	u, err := url.Parse(k.base + path + "?" + q.Encode())
	must(t, err)
	e, err := remotecommand.NewSPDYExecutor(k.config(), "POST", u)
	must(t, err)
	return e
}

func (k *kubelet) execs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	e := k.executor(t, "/exec/default/web/app", url.Values{"command": {"sh", "-c", "cat; echo oops >&2; exit 3"}, "input": {"1"}, "output": {"1"}, "error": {"1"}})
	err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut})
	exit, ok := err.(utilexec.ExitError)
	if !ok || exit.ExitStatus() != 3 || out.String() != "hello" || errOut.String() != "oops\n" {
		t.Errorf("got %v, %q, %q", err, out.String(), errOut.String())
	}
	out.Reset()
	e = k.executor(t, "/exec/default/web/app", url.Values{"command": {"sh", "-c", "tty; stty size"}, "output": {"1"}, "tty": {"1"}, "input": {"1"}})
	sizes := &oneSize{}
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
	if err != nil || !strings.Contains(out.String(), "/dev/pts/0") {
		t.Errorf("got %v, %q", err, out.String())
	}
	if code, body := k.get(k.asServer, "/exec/default/web/none?command=x&output=1"); code != 404 {
		t.Errorf("got %d %s", code, body)
	}
}

type oneSize struct{ n int }

func (s *oneSize) Next() *remotecommand.TerminalSize {
	if s.n++; s.n > 1 {
		return nil
	}
	return &remotecommand.TerminalSize{Width: 100, Height: 40}
}

func (k *kubelet) attaches(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	in, toIn := io.Pipe()
	fromOut, out := io.Pipe()
	e := k.executor(t, "/attach/default/web/in", url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}})
	ended := make(chan error, 1)
	go func() {
		ended <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
		out.Close()
	}()
	_, err := io.WriteString(toIn, "a\n")
	must(t, err)
	buf := make([]byte, 6)
	if _, err := io.ReadFull(fromOut, buf); err != nil || string(buf) != "got a\n" {
		t.Errorf("got %q, %v", buf, err)
	}
	cancel()
	<-ended
}

func (k *kubelet) forwards(t *testing.T) {
	transport, upgrader, err := spdy.RoundTripperFor(k.config())
	must(t, err)
	u, err := url.Parse(k.base + "/portForward/default/web")
	must(t, err)
	stop, ready := make(chan struct{}), make(chan struct{})
	var errOut bytes.Buffer
	f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), []string{"0:8080"}, stop, ready, io.Discard, &errOut)
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	must(t, err)
	for range 3 {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/group", ports[0].Local))
		must(t, err)
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.HasPrefix(string(b), "root:x:0") {
			t.Errorf("got %q, %v", b, err)
		}
	}
	close(stop)
	<-ended
	if errOut.Len() > 0 {
		t.Error(errOut.String())
	}
}

func (k *kubelet) stats(t *testing.T) {
	var s statsapi.Summary
	_, body := k.get(k.asServer, "/stats/summary")
	must(t, json.Unmarshal([]byte(body), &s))
	found := false
	for _, p := range s.Pods {
		if p.PodRef.Name == "web" {
			found = len(p.Containers) == 2 && *p.Memory.WorkingSetBytes > 0 && p.EphemeralStorage != nil
		}
	}
	if !found || *s.Node.CPU.UsageCoreNanoSeconds == 0 {
		t.Errorf("summary is %s", body)
	}
	_, body = k.get(k.asServer, "/metrics/resource")
	if !strings.Contains(body, `container_memory_working_set_bytes{container="app",namespace="default",pod="web"}`) {
		t.Errorf("metrics are %s", body)
	}
	var pods corev1.PodList
	_, body = k.get(k.asServer, "/pods")
	must(t, json.Unmarshal([]byte(body), &pods))
	if len(pods.Items) == 0 {
		t.Error("no pods")
	}
}

func (k *kubelet) metrics(t *testing.T) {
	proxy := k.as(k.proxyCA.pair("front-proxy", x509.ExtKeyUsageClientAuth))
	const root = "/apis/metrics.k8s.io/v1beta1"
	var pods metricsv1beta1.PodMetricsList
	_, body := k.get(proxy, root+"/pods?labelSelector=app%3Dweb")
	must(t, json.Unmarshal([]byte(body), &pods))
	if len(pods.Items) != 1 || pods.Items[0].Name != "web" || len(pods.Items[0].Containers) != 2 || pods.Items[0].Containers[0].Usage.Memory().Value() == 0 {
		t.Errorf("pods are %s", body)
	}
	var pod metricsv1beta1.PodMetrics
	_, body = k.get(proxy, root+"/namespaces/default/pods/web")
	must(t, json.Unmarshal([]byte(body), &pod))
	if pod.Name != "web" || pod.Window.Duration == 0 {
		t.Errorf("pod is %s", body)
	}
	var nodes metricsv1beta1.NodeMetricsList
	_, body = k.get(proxy, root+"/nodes")
	must(t, json.Unmarshal([]byte(body), &nodes))
	if len(nodes.Items) != 1 || nodes.Items[0].Usage.Memory().Value() == 0 || nodes.Items[0].Usage.Cpu().IsZero() {
		t.Errorf("nodes are %s", body)
	}
	if code, _ := k.get(proxy, root+"/namespaces/default/pods/none"); code != 404 {
		t.Errorf("got %d", code)
	}
	req, err := http.NewRequest("GET", k.base+root+"/namespaces/default/pods", nil)
	must(t, err)
	req.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	resp, err := proxy.Do(req)
	must(t, err)
	defer resp.Body.Close()
	var table metav1.Table
	must(t, json.NewDecoder(resp.Body).Decode(&table))
	if len(table.Rows) == 0 || table.Kind != "Table" {
		t.Errorf("table is %+v", table)
	}
}

func (k *kubelet) previousLogs(t *testing.T) {
	k.rig.t = t
	k.apply(`
metadata: {name: twice}
spec:
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: app
    command: [sh, -c, "if [ -f /v/f ]; then echo second; sleep 1000; fi; touch /v/f; echo first; exit 1"]
    volumeMounts: [{name: v, mountPath: /v}]
`)
	k.await("twice", "running again", func(p *corev1.Pod) bool {
		return state(p, "app").RestartCount == 1 && state(p, "app").State.Running != nil
	})
	if code, got := k.get(k.asServer, "/containerLogs/default/twice/app?previous=true"); code != 200 || got != "first\n" {
		t.Errorf("previous: %d %q", code, got)
	}
	eventually(t, func() bool {
		_, got := k.get(k.asServer, "/containerLogs/default/twice/app")
		return got == "second\n"
	})
}

func TestNode(t *testing.T) {
	r := newRig(t)
	n, err := r.client.CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{})
	must(t, err)
	if n.Labels["kubernetes.io/hostname"] != "node-1" || n.Labels["kubernetes.io/os"] != "linux" {
		t.Errorf("labels are %v", n.Labels)
	}
	types := map[corev1.NodeConditionType]corev1.ConditionStatus{}
	for _, c := range n.Status.Conditions {
		types[c.Type] = c.Status
	}
	if types[corev1.NodeReady] != corev1.ConditionTrue || len(types) != 4 {
		t.Errorf("conditions are %v", types)
	}
	if n.Status.NodeInfo.KubeletVersion != "v1.36.3" || n.Status.Capacity.Memory().IsZero() || n.Status.Allocatable.Pods().Value() != 1000 {
		t.Errorf("status is %+v", n.Status)
	}
	eventually(t, func() bool {
		l, err := r.client.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "node-1", metav1.GetOptions{})
		return err == nil && l.Spec.RenewTime != nil && *l.Spec.HolderIdentity == "node-1"
	})
}
