// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/sonagi/sonagi/internal/mesh/gateway"
	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/activator"
	"github.com/sonagi/sonagi/internal/serving/load"
)

// world is a gateway with a recorder before one app.
type world struct {
	t       *testing.T
	dir     string
	url     string
	tables  *routing.Live
	pods    *activator.Activator
	records *Recorder
	up      func() // makes the pod ready

	mu   sync.Mutex
	seen []http.Header // by the app
}

var web = routing.Name{Namespace: "ns", Name: "web-1"}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	app := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r.Header)
		w.mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/broken" {
			rw.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(rw, "hello")
	}))
	t.Cleanup(app.Close)
	at := netip.MustParseAddrPort(app.Listener.Addr().String())
	w.tables = &routing.Live{}
	e := w.tables.Load().Edit()
	e.SetRevision(&routing.Revision{Name: web, Service: "web", Configuration: "web", Port: at.Port(), Timeout: time.Minute})
	e.SetRoute(&routing.Route{Name: web, Hosts: []routing.Host{{Host: "web.example", Split: routing.NewSplit([]routing.Share{{Revision: web, Percent: 100}})}}})
	w.tables.Swap(e.Table())
	w.pods = activator.New(func(load.Poke) {})
	w.up = func() {
		w.pods.SetEndpoint(routing.Endpoint{Revision: web, UID: "a", Pod: "web-pod", IP: at.Addr(), Ready: true})
	}
	log := slog.New(slog.DiscardHandler)
	g := gateway.New(gateway.Options{Tables: w.tables, Pods: w.pods, Log: log})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.Add(l, false)
	w.url = "http://" + l.Addr().String()
	w.records = New(Options{Dir: w.dir, Watch: g.Watch, PodName: func(netip.Addr) string { return "web-pod" }, Log: log})
	ctx, stop := context.WithCancel(context.Background())
	var both sync.WaitGroup
	both.Go(func() { _ = g.Task().Run(ctx) })
	both.Go(func() { _ = w.records.Task().Run(ctx) })
	t.Cleanup(func() { stop(); both.Wait() })
	return w
}

func (w *world) ask(path string, two bool, header ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequest("POST", w.url+path, strings.NewReader("abc"))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = "web.example"
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: !two}
	if two {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

func (w *world) last() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[len(w.seen)-1]
}

// text waits for a log to hold something.
func (w *world) text(file, holds string) string {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; {
		text, _ := os.ReadFile(filepath.Join(w.dir, file))
		if strings.Contains(string(text), holds) {
			return string(text)
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s has no %q:\n%s", file, holds, text)
		}
		time.Sleep(10 * time.Millisecond) // nothing tells that a file has grown
	}
}

func TestAccessLog(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.ask("/before", false)
	w.records.Configure(Kourier, map[string]string{accessLogKey: "true"})
	for _, two := range []bool{false, true} {
		w.ask("/a?b=c", two, "User-Agent", `x"y`, "X-Request-Id", "id-1", "X-Forwarded-For", "9.9.9.9")
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /nobody HTTP/1.1\r\nHost: nobody.example\r\n\r\nGET /bad HTTP/1.1\r\nHost : x\r\n\r\n")
	text := w.text("access.log", "malformed")
	for _, want := range []string{
		`] "POST /a?b=c HTTP/1.1" 200 - 3 5 `,
		`] "POST /a?b=c HTTP/2.0" 200 - 3 5 `,
		` - "9.9.9.9,127.0.0.1" "x\"y" "id-1" "web.example" "127.0.0.1:`,
		`] "GET /nobody HTTP/1.1" 404 no_route_has_this_host 0 0 `,
		`] "- - HTTP/1.1" 400 malformed_header_field 0 `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "/before") || strings.Count(text, "\n") != 4 {
		t.Error(text)
	}
	w.records.Configure(Kourier, nil)
	w.ask("/after", false)
	if text := w.text("access.log", ""); strings.Contains(text, "/after") {
		t.Error("it was switched off:\n" + text)
	}
}

func TestRequestLog(t *testing.T) {
	w := newWorld(t)
	w.up()
	const file = "requests/ns/web-1.log"
	set := func(form string) {
		w.records.Configure(Observability, map[string]string{"logging.enable-request-log": "true", "logging.request-log-template": form})
	}
	set(`{{.Request.Method}} {{.Request.URL.Path}} {{.Request.URL.Query.Get "b"}} {{.Request.Host}} {{.Request.Header.Get "A"}} {{.Request.ContentLength}} {{.Request.RemoteAddr}} {{.Response.Code}} {{.Response.Size}} {{.Revision.Name}} {{.Revision.Namespace}} {{.Revision.Service}} {{.Revision.Configuration}} {{.Revision.PodName}} {{.Revision.PodIP}} {{.TraceID}} {{.Request.Proto}}`)
	for _, two := range []bool{false, true} {
		w.ask("/broken?b=c", two, "A", "1", "Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
		proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[two]
		w.text(file, "POST /broken c web.example 1 3 127.0.0.1 500 5 web-1 ns web web web-pod 127.0.0.1 4bf92f3577b34da6a3ce929d0e0e4736 "+proto+"\n")
	}
	set("{{.Nothing}}")
	w.ask("/", false)
	w.text(file, "Invalid request log template: method: POST, response code: 200")
	w.records.Configure(Observability, map[string]string{"logging.enable-request-log": "true"}) // the default form
	w.ask("/default", false)
	w.text(file, `{"httpRequest": {"requestMethod": "POST", "requestUrl": "/default", "requestSize": "3", "status": 200, "responseSize": "5",`)
	w.records.Forget(web)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(w.dir, file)); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the log of a revision that is no more is still there")
		}
	}
}

// TestLogsDoNotBlock fills what nobody writes.
func TestLogsDoNotBlock(t *testing.T) {
	r := New(Options{Dir: t.TempDir(), Watch: func(gateway.Witness) {}, Log: slog.New(slog.DiscardHandler)})
	line := make([]byte, 1000)
	for range 2 * maxPending / len(line) {
		r.access.add(func(out []byte) []byte { return append(out, line...) })
	}
	if a, _ := r.Dropped(); a == 0 || len(r.access.pending) > maxPending+len(line) {
		t.Error(a, len(r.access.pending))
	}
}

func TestLogsAreRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "log")
	r := rotated{path: path, limit: 100}
	for i := range 30 {
		if err := r.write(fmt.Appendf(nil, "line %03d.\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	now, _ := os.ReadFile(path)
	before, _ := os.ReadFile(path + ".1")
	if len(now) > 100 || len(before) > 100 || !strings.HasSuffix(string(now), "line 029.\n") || !strings.HasSuffix(string(before), "line 019.\n") {
		t.Errorf("%q\n%q", now, before)
	}
}

// sink is a collector of traces.
type sink struct {
	collector.UnimplementedTraceServiceServer
	spans chan *tracev1.Span
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, span := range ss.Spans {
				s.spans <- span
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// collect starts a collector that speaks a protocol, and returns its endpoint.
func collect(t *testing.T, protocol string) (*sink, string) {
	s := &sink{spans: make(chan *tracev1.Span, 100)}
	if protocol == "grpc" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		collector.RegisterTraceServiceServer(server, s)
		go func() { _ = server.Serve(l) }()
		t.Cleanup(server.Stop)
		return s, "http://" + l.Addr().String()
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			t.Error(err)
		}
		_, _ = s.Export(r.Context(), &req)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	return s, server.URL + "/v1/traces"
}

// take returns that many spans by their names.
func (s *sink) take(t *testing.T, n int) map[string]*tracev1.Span {
	t.Helper()
	got := map[string]*tracev1.Span{}
	for range n {
		select {
		case span := <-s.spans:
			got[span.Name] = span
		case <-time.After(20 * time.Second):
			t.Fatalf("got %v only", got)
		}
	}
	return got
}

func TestTraces(t *testing.T) {
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			w := newWorld(t)
			s, endpoint := collect(t, protocol)
			w.records.Configure(Observability, map[string]string{"tracing-protocol": protocol, "tracing-endpoint": endpoint, "tracing-sampling-rate": "1"})
			const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
			go func() {
				// The request comes before the pod.
				for w.held() == 0 {
					time.Sleep(time.Millisecond)
				}
				w.up()
			}()
			w.ask("/broken?q=1", false, "Traceparent", parent, "Tracestate", "a=b")
			told := w.last()
			w.ask("/two", true)
			w.records.Configure(Observability, nil) // which sends what is left
			first := map[string]*tracev1.Span{}
			var second []*tracev1.Span
			for range 5 {
				for name, span := range s.take(t, 1) {
					if hex.EncodeToString(span.TraceId) == parent[3:35] {
						first[name] = span
					} else {
						second = append(second, span)
					}
				}
			}
			root, held, app := first["gateway"], first["activation"], first["app"]
			if root == nil || held == nil || app == nil || len(second) != 2 {
				t.Fatalf("%v\n%v", first, second)
			}
			if hex.EncodeToString(root.ParentSpanId) != parent[36:52] || string(held.ParentSpanId) != string(root.SpanId) || string(app.ParentSpanId) != string(root.SpanId) {
				t.Error("not one below the other")
			}
			if want := "00-" + parent[3:35] + "-" + hex.EncodeToString(app.SpanId) + "-01"; told.Get("Traceparent") != want || len(told["Traceparent"]) != 1 || told.Get("Tracestate") != "a=b" {
				t.Error("the app is told", told, "want", want)
			}
			attributes := map[string]string{}
			for _, a := range root.Attributes {
				attributes[a.Key] = strings.Trim(strings.SplitN(a.Value.String(), ":", 2)[1], `"`)
			}
			for key, want := range map[string]string{
				"http.request.method": "POST", "http.response.status_code": "500", "url.path": "/broken", "url.query": "q=1",
				"kn.revision.name": "web-1", "kn.service.name": "web", "k8s.namespace.name": "ns", "server.address": "web.example",
			} {
				if attributes[key] != want {
					t.Errorf("%s is %q, want %q", key, attributes[key], want)
				}
			}
			if root.Status.GetCode() != tracev1.Status_STATUS_CODE_ERROR || root.StartTimeUnixNano > held.StartTimeUnixNano || root.EndTimeUnixNano < app.EndTimeUnixNano {
				t.Error(root, held, app)
			}
		})
	}
}

func (w *world) held() (n int64) {
	_, samples := w.pods.Sample()
	for _, s := range samples {
		n += s.Held
	}
	return n
}

func TestTracesThatAreNotSampled(t *testing.T) {
	w := newWorld(t)
	w.up()
	const off, on = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	w.ask("/", false, "Traceparent", on)
	if got := w.last().Get("Traceparent"); got != on {
		t.Error("with traces off the app is told", got)
	}
	s, endpoint := collect(t, "grpc")
	w.records.Configure(Observability, map[string]string{"tracing-protocol": "grpc", "tracing-endpoint": endpoint, "tracing-sampling-rate": "0"})
	for _, two := range []bool{false, true} {
		w.ask("/", two, "Traceparent", off)
		if got := w.last()["Traceparent"]; len(got) != 1 || got[0] != off {
			t.Error("the app is told", got)
		}
		w.ask("/", two)
		if got := w.last()["Traceparent"]; len(got) != 1 || !strings.HasSuffix(got[0], "-00") {
			t.Error("the app is told", got)
		}
	}
	w.ask("/", false, "Traceparent", on) // whoever called decides
	w.records.Configure(Observability, nil)
	if got := s.take(t, 2); got["gateway"] == nil || got["app"] == nil {
		t.Error(got)
	}
	select {
	case span := <-s.spans:
		t.Error("sampled:", span)
	default:
	}
}

// TestCollectorThatOnlyPodsKnow has a collector named as in the cluster, whose
// address is not known at first.
func TestCollectorThatOnlyPodsKnow(t *testing.T) {
	w := newWorld(t)
	w.up()
	s, endpoint := collect(t, "http/protobuf")
	host, rest, _ := strings.Cut(strings.TrimPrefix(endpoint, "http://"), ":")
	var asked atomic.Int32
	w.records.Resolve = func(name string) string {
		if name != "jaeger.observability" || asked.Add(1) == 1 {
			return "127.0.0.2" // where nobody listens
		}
		return host
	}
	w.records.Configure(Observability, map[string]string{"tracing-protocol": "http/protobuf", "tracing-endpoint": "http://jaeger.observability:" + rest, "tracing-sampling-rate": "1"})
	w.ask("/lost", false)
	w.records.again() // as when the exporter has failed
	w.ask("/seen", false)
	w.records.Configure(Observability, nil)
	s.take(t, 2)
}

func TestBadSettingsChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.up()
	w.records.Configure(Observability, map[string]string{"logging.enable-request-log": "true", "logging.request-log-template": "{{.Request.URL.Path}}"})
	w.records.Configure(Observability, map[string]string{"logging.enable-request-log": "true", "logging.request-log-template": "{{"})
	w.ask("/still", false)
	w.text("requests/ns/web-1.log", "/still\n")
}

// FuzzTraceparent holds our reading against OpenTelemetry's.
func FuzzTraceparent(f *testing.F) {
	for _, s := range []string{
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		ours, ok := parseParent(p)
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": string(p)})
		theirs := trace.SpanContextFromContext(ctx)
		if ok && !theirs.IsValid() {
			t.Fatalf("%q is taken", p)
		}
		if ok && (ours.TraceID() != theirs.TraceID() || ours.SpanID() != theirs.SpanID() || ours.IsSampled() != theirs.IsSampled()) {
			t.Fatalf("%q: %+v, OpenTelemetry %+v", p, ours, theirs)
		}
		if !ok && theirs.IsValid() {
			t.Fatalf("%q is not taken", p)
		}
	})
}

func BenchmarkNotSampled(b *testing.B) {
	t := &tracer{}
	r := &gateway.Report{}
	b.ReportAllocs()
	for b.Loop() {
		r.Tell(randomTrace(), randomSpan(), false)
	}
	_ = t
}
