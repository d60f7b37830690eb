// SPDX-License-Identifier: Apache-2.0

// Package observability holds what is told of requests to what has passed:
// metrics, logs and traces; and what the platform says of itself.
package observability

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sonagi/sonagi/test/platform"
	"github.com/sonagi/sonagi/test/shell"
)

var p *platform.Platform

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(platform.Main(m, &p))
}

var deploy = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

// serve makes a service of the app in a namespace of its own, and returns its host.
func serve(t *testing.T, namespace, notes string) (*platform.Space, string) {
	t.Helper()
	if err := deploy(); err != nil {
		t.Fatal(err)
	}
	s := p.Space(t, namespace)
	s.Make(fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: web}
spec:
  template:
    metadata: {annotations: {%s}}
    spec:
      containers: [{image: %s}]
`, notes, p.App()))
	s.K("wait", "ksvc/web", "--for=condition=Ready", "--timeout=60s")
	return s, p.Host("web", namespace)
}

// set changes a ConfigMap of the platform for the time of a test.
func set(t *testing.T, name string, data map[string]string) {
	t.Helper()
	patch := func(values map[string]any) error {
		text, err := json.Marshal(map[string]any{"data": values})
		if err == nil {
			_, err = p.Kubectl(context.Background(), "-n", "knative-serving", "patch", "configmap", name, "--type=merge", "-p", string(text))
		}
		return err
	}
	to, back := map[string]any{}, map[string]any{}
	for k, v := range data {
		to[k], back[k] = v, nil
	}
	if err := patch(to); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := patch(back); err != nil {
			t.Error(err)
		}
	})
}

// send sends requests that are all answered alike.
func send(t *testing.T, n int, method, host, path string, body string, status int, header ...string) (last string) {
	t.Helper()
	for range n {
		req, err := http.NewRequest(method, p.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != status {
			t.Fatal(resp.Status, err, string(text))
		}
		last = string(text)
	}
	return last
}

// TestCalm is the first: in a healthy start and in one service's life nothing
// happens that anybody would have to be warned of.
func TestCalm(t *testing.T) {
	s, host := serve(t, "calm", "")
	send(t, 3, "GET", host, "/", "", 200)
	s.K("patch", "ksvc/web", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"autoscaling.knative.dev/min-scale":"2"}}}}}`)
	platform.Eventually(t, time.Minute, func() error {
		if out := s.K("get", "ksvc/web", "-o", `jsonpath={.status.latestReadyRevisionName} {.status.conditions[?(@.type=="Ready")].status}`); out != "web-00002 True" {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	send(t, 3, "GET", host, "/", "", 200)
	s.K("delete", "ksvc/web", "--wait=true")
	platform.Eventually(t, time.Minute, func() error {
		if out := s.K("get", "pod", "-o", "name"); out != "" {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
	for _, child := range []string{"control", "node"} {
		text, err := os.ReadFile(filepath.Join(p.DataDir, "logs", child+".log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "level=DEBUG") {
				t.Errorf("%s: %s", child, line)
			}
		}
	}
}

// bridge is this machine's address towards its pods.
func bridge(t *testing.T) netip.Addr {
	flags := p.Flags()
	cidr, err := netip.ParsePrefix(flags[slices.Index(flags, "--pod-cidr")+1])
	if err != nil {
		t.Fatal(err)
	}
	return cidr.Addr().Next()
}

type families map[string]*dto.MetricFamily

// scrape reads the metrics as Prometheus does.
func scrape(t *testing.T) families {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://%s:9464/metrics", bridge(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return parse(t, resp.Body)
}

func parse(t *testing.T, text io.Reader) families {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	all, err := parser.TextToMetricFamilies(text)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// value adds up what has these labels; of a histogram, its count.
func (f families) value(name string, labels ...string) (sum float64) {
	for _, m := range f[name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.Label {
			have[l.GetName()] = l.GetValue()
		}
		all := true
		for i := 0; i+1 < len(labels); i += 2 {
			all = all && have[labels[i]] == labels[i+1]
		}
		if all {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func TestMetrics(t *testing.T) {
	_, host := serve(t, "metrics", "autoscaling.knative.dev/metric: concurrency")
	send(t, 20, "GET", host, "/", "", 200)
	send(t, 7, "POST", host, "/?status=418", "abcdefgh", 418)
	for _, m := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"kn_serving_invocation_duration_seconds", []string{"k8s_namespace_name", "metrics", "kn_revision_name", "web-00001", "kn_service_name", "web", "kn_configuration_name", "web", "http_response_status_code", "200"}, 20},
		{"kn_serving_invocation_duration_seconds", []string{"k8s_namespace_name", "metrics", "http_response_status_code", "418"}, 7},
		{"http_server_request_duration_seconds", []string{"k8s_namespace_name", "metrics", "http_request_method", "POST"}, 7},
		{"http_server_request_body_size_bytes", []string{"k8s_namespace_name", "metrics", "http_request_method", "POST"}, 7},
		{"revision_request_count", []string{"namespace_name", "metrics", "revision_name", "web-00001", "response_code_class", "2xx"}, 20},
		{"revision_app_request_count", []string{"namespace_name", "metrics", "response_code", "418"}, 7},
		{"revision_request_latencies", []string{"namespace_name", "metrics"}, 27},
		{"revision_app_request_latencies", []string{"namespace_name", "metrics"}, 27},
		{"kn_revision_pods_count", []string{"k8s_namespace_name", "metrics", "kn_revision_name", "web-00001"}, 1},
		{"kn_revision_pods_requested", []string{"k8s_namespace_name", "metrics"}, 1},
		{"kn_revision_pods_desired", []string{"k8s_namespace_name", "metrics"}, 1},
		{"autoscaler_actual_pods", []string{"namespace_name", "metrics"}, 1},
		{"kn_revision_panic_mode", []string{"k8s_namespace_name", "metrics"}, 0},
		{"kn_revision_concurrency_target", []string{"k8s_namespace_name", "metrics"}, 70},
		{"kn_revision_request_queued", []string{"k8s_namespace_name", "metrics"}, 0},
	} {
		platform.Eventually(t, 10*time.Second, func() error {
			all := scrape(t)
			if got := all.value(m.name, m.labels...); got != m.want || all[m.name] == nil {
				return fmt.Errorf("%s%v is %g, want %g", m.name, m.labels, got, m.want)
			}
			return nil
		})
	}
	for _, m := range scrape(t)["http_server_request_body_size_bytes"].Metric {
		for _, l := range m.Label {
			if l.GetValue() == "POST" && m.Histogram.GetSampleSum() != 7*8 {
				t.Error("bytes of bodies:", m.Histogram.GetSampleSum())
			}
		}
	}
	// A request that is still running is seen as such.
	slow := make(chan struct{})
	go func() { defer close(slow); send(t, 1, "GET", host, "/?wait=3s", "", 200) }()
	platform.Eventually(t, 10*time.Second, func() error {
		if got := scrape(t).value("kn_revision_request_active", "k8s_namespace_name", "metrics"); got != 1 {
			return fmt.Errorf("%g active", got)
		}
		return nil
	})
	<-slow
	// From inside it is found by the Service; from outside it is not to be had.
	at, err := p.Kubectl(t.Context(), "-n", "knative-serving", "get", "service", "serving-metrics", "-o",
		`jsonpath={.metadata.annotations.prometheus\.io/scrape} {.metadata.annotations.prometheus\.io/path} {.metadata.annotations.prometheus\.io/port} {.spec.ports[0].name}`)
	if err != nil || at != "true /metrics 9464 http-metrics" {
		t.Error(at, err)
	}
	inside := send(t, 1, "GET", host, "/fetch?url=http://serving-metrics.knative-serving.svc:9090/metrics", "", 200)
	if got := parse(t, strings.NewReader(inside)).value("revision_request_count", "namespace_name", "metrics", "response_code", "418"); got != 7 {
		t.Error("from a pod:", got)
	}
	if c, err := net.Dial("tcp", "127.0.0.1:9464"); err == nil {
		c.Close()
		t.Error("the metrics are served on other addresses too")
	}
}

func TestMetricsGoWithTheRevision(t *testing.T) {
	s, host := serve(t, "gone", "")
	send(t, 1, "GET", host, "/", "", 200)
	if got := scrape(t).value("revision_request_count", "namespace_name", "gone"); got != 1 {
		t.Error(got)
	}
	s.K("delete", "ksvc/web")
	platform.Eventually(t, 30*time.Second, func() error {
		all := scrape(t)
		for name, f := range all {
			if all.value(name, "namespace_name", "gone")+all.value(name, "k8s_namespace_name", "gone") != 0 {
				return fmt.Errorf("still there: %v", f)
			}
		}
		return nil
	})
}

func TestRequestLog(t *testing.T) {
	_, host := serve(t, "logged", "")
	send(t, 1, "GET", host, "/before", "", 200)
	set(t, "config-observability", map[string]string{
		"logging.enable-request-log":   "true",
		"logging.request-log-template": `{{.Request.Method}} {{.Request.URL.Path}} {{.Response.Code}} {{.Response.Size}} {{.Revision.Namespace}}/{{.Revision.Name}} {{.Revision.PodName}}`,
	})
	logs := func(wants ...string) {
		t.Helper()
		platform.Eventually(t, 15*time.Second, func() error {
			send(t, 1, "POST", host, "/seen?status=418", "abc", 418)
			out, err := p.Sonagi(t.Context(), "logs", "web", "-n", "logged", "--requests")
			for _, want := range wants {
				if !regexp.MustCompile(want).MatchString(out) {
					return fmt.Errorf("%w: no %s in %s", err, want, out)
				}
			}
			if strings.Contains(out, "/before") {
				t.Error("logged before it was switched on")
			}
			return nil
		})
	}
	logs(`web-00001 \| POST /seen 418 9 logged/web-00001 web-00001-deployment-\S+\n`)
	set(t, "config-observability", map[string]string{"logging.request-log-template": `again {{.Request.Host}} {{printf "%.0f" .Response.Latency}}`})
	logs(`web-00001 \| again web\.logged\.\S+ 0\n`)
}

func TestBadSettingsAreRefused(t *testing.T) {
	for key, bad := range map[string]string{
		"logging.request-log-template": "{{", "tracing-protocol": "zipkin", "tracing-sampling-rate": "2", "metrics-protocol": "opencensus",
		"runtime-profiling": "maybe", "request-metrics-protocol": "grpc", "logging.enable-request-log": "perhaps",
	} {
		out, err := p.Kubectl(t.Context(), "-n", "knative-serving", "patch", "configmap", "config-observability", "--type=merge", "-p", fmt.Sprintf(`{"data":{%q:%q}}`, key, bad))
		if err == nil || !strings.Contains(err.Error()+out, "validation failed") {
			t.Errorf("%s: %s: %s %v", key, bad, out, err)
		}
	}
}

func TestAccessLog(t *testing.T) {
	_, host := serve(t, "access", "")
	set(t, "config-kourier", map[string]string{"enable-service-access-logging": "true"})
	platform.Eventually(t, 15*time.Second, func() error {
		send(t, 1, "PUT", host, "/some?thing", "abc", 200, "User-Agent", "tester", "X-Request-Id", "id-7")
		send(t, 1, "GET", "nobody.example", "/lost", "", 404)
		text, err := os.ReadFile(filepath.Join(p.DataDir, "logs", "access.log"))
		if err != nil {
			return err
		}
		for _, want := range []string{`\[20\S+Z\] "PUT /some\?thing HTTP/1\.1" 200 - 3 9 \d+ - "127\.0\.0\.1" "tester" "id-7" "` + host + `" "10\.\d+\.\d+\.\d+:8080"`, `"GET /lost HTTP/1\.1" 404 no_route`} {
			if !regexp.MustCompile(want).Match(text) {
				return fmt.Errorf("no %s in\n%s", want, text)
			}
		}
		return nil
	})
}

func TestProfiles(t *testing.T) {
	status := func() int {
		resp, err := http.Get(fmt.Sprintf("http://%s:9464/debug/pprof/goroutine", bridge(t)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := status(); got != 404 {
		t.Error("they are off, and the answer is", got)
	}
	set(t, "config-observability", map[string]string{"runtime-profiling": "enabled"})
	platform.Eventually(t, 10*time.Second, func() error {
		if got := status(); got != 200 {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// TestTop compares what kubectl top says with what the kernel does.
func TestTop(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shell.tar")
	const image = "shell.local/shell:top"
	if err := shell.Archive(file, image); err != nil {
		t.Fatal(err)
	}
	if err := p.LoadImage(file); err != nil {
		t.Fatal(err)
	}
	s := p.Space(t, "top")
	s.Make(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {is: busy}}
spec:
  containers:
  - name: cpu
    image: %[1]s
    imagePullPolicy: Never
    command: [sh, -c, "while :; do :; done"]
    resources: {limits: {cpu: 300m}}
  - name: memory
    image: %[1]s
    imagePullPolicy: Never
    command: [sh, -c, "x=$(head -c 60000000 /dev/zero | tr '\\0' a); sleep 3600; true"]
`, image))
	s.Ready("busy")
	var pid int
	platform.Eventually(t, 10*time.Second, func() error {
		pid = find("while :; do :; done")
		if pid == 0 {
			return fmt.Errorf("no busy process")
		}
		return nil
	})
	// The first question starts the measuring; the second gets a whole window.
	s.Says([]string{"busy"}, "top", "pod", "busy")
	from, started := cpu(t, pid), time.Now()
	time.Sleep(6 * time.Second) // a measurement's length: nothing is waited for
	used := float64(cpu(t, pid)-from) * 1000 / 100 / time.Since(started).Seconds()
	out := s.K("top", "pod", "busy", "--containers", "--no-headers")
	got := map[string][2]int{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		got[f[1]] = [2]int{number(t, strings.TrimSuffix(f[2], "m")), number(t, strings.TrimSuffix(f[3], "Mi"))}
	}
	t.Logf("top says %v, the kernel %.0fm", got, used)
	if m := float64(got["cpu"][0]); m < used*0.6 || m > used*1.5 || m > 400 {
		t.Errorf("processor: %gm, by the kernel %.0fm", m, used)
	}
	if m := got["memory"][1]; m < 55 || m > 130 {
		t.Errorf("memory: %d Mi, with 57 in a variable and what making it has left", m)
	}
	if m := got["cpu"][1]; m > 20 {
		t.Errorf("memory of a loop: %d Mi", m)
	}
	f := strings.Fields(s.K("top", "node", "--no-headers"))
	if have, want := number(t, strings.TrimSuffix(f[3], "Mi")), inUse(t); have < want*8/10 || have > want*12/10 {
		t.Errorf("node: %d Mi, by the kernel %d", have, want)
	}
}

func number(t *testing.T, text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// find returns the process whose arguments hold a word.
func find(word string) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(string(args), "sh\x00-c\x00"+word) {
			return pid
		}
	}
	return 0
}

// cpu is the time a process has had, in hundredths of a second.
func cpu(t *testing.T, pid int) (ticks int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	return number(t, f[11]) + number(t, f[12])
}

// inUse is the memory of the machine that is used, in MiB.
func inUse(t *testing.T) int {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	have := map[string]int{}
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		have[w[0]] = number(t, w[1])
	}
	return (have["MemTotal:"] - have["MemAvailable:"]) / 1024
}
