// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	metricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/sonagi/sonagi/test/platform"
)

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

func TestTraces(t *testing.T) {
	s, host := serve(t, "traced", "autoscaling.knative.dev/window: 6s")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := &sink{spans: make(chan *tracev1.Span, 1000)}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, to)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if got := told(t, host, "Traceparent", parent); got.Get("Traceparent") != parent {
		t.Error("with traces off, the client's trace is passed on as", got)
	}
	set(t, "config-observability", map[string]string{"tracing-protocol": "grpc", "tracing-endpoint": "http://" + l.Addr().String(), "tracing-sampling-rate": "0"})
	platform.Eventually(t, 10*time.Second, func() error {
		if got := told(t, host).Get("Traceparent"); !strings.HasSuffix(got, "-00") {
			return fmt.Errorf("not sampled, and the app is told %q", got)
		}
		return nil
	})
	// From zero, in a trace that began elsewhere.
	platform.Eventually(t, time.Minute, func() error {
		if out := s.K("get", "pod", "-o", "name"); out != "" {
			return fmt.Errorf("not at zero: %s", out)
		}
		return nil
	})
	got := told(t, host, "Traceparent", parent, "Tracestate", "vendor=1")
	spans := map[string]*tracev1.Span{}
	for len(spans) < 3 {
		select {
		case span := <-to.spans:
			if id := hex.EncodeToString(span.TraceId); id != parent[3:35] {
				t.Error("another trace was sampled:", id)
			}
			spans[span.Name] = span
		case <-time.After(20 * time.Second):
			t.Fatalf("%v", spans)
		}
	}
	root, held, app := spans["gateway"], spans["activation"], spans["app"]
	if root == nil || held == nil || app == nil {
		t.Fatalf("%v", spans)
	}
	if hex.EncodeToString(root.ParentSpanId) != parent[36:52] || string(held.ParentSpanId) != string(root.SpanId) || string(app.ParentSpanId) != string(root.SpanId) {
		t.Error("not one below the other:", spans)
	}
	if want := "00-" + parent[3:35] + "-" + hex.EncodeToString(app.SpanId) + "-01"; got.Get("Traceparent") != want || got.Get("Tracestate") != "vendor=1" {
		t.Error("the app is told", got, "want", want)
	}
	took := func(s *tracev1.Span) time.Duration { return time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano) }
	if took(held) < time.Millisecond || took(root) < took(held)+took(app) {
		t.Error(took(root), took(held), took(app))
	}
	t.Logf("from zero: %v, of which %v until there was a pod and %v in the app", took(root), took(held), took(app))
}

// TestPushedMetrics has a collector that is known by a Service's name only, and
// whose Service comes late.
func TestPushedMetrics(t *testing.T) {
	s, host := serve(t, "pushed", "")
	l, err := net.Listen("tcp", net.JoinHostPort(bridge(t).String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *metricsv1.ExportMetricsServiceRequest, 100)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		req := &metricsv1.ExportMetricsServiceRequest{}
		if err := proto.Unmarshal(body, req); err != nil {
			t.Error(err)
		}
		select {
		case got <- req:
		default:
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	set(t, "config-observability", map[string]string{
		"request-metrics-protocol": "http/protobuf", "request-metrics-export-interval": "1s",
		"request-metrics-endpoint": "http://collector.pushed.svc.cluster.local:4318/v1/metrics",
	})
	send(t, 5, "GET", host, "/", "", 200)
	s.Make(fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: collector}
spec: {ports: [{port: 4318, targetPort: %[1]s}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: collector, labels: {kubernetes.io/service-name: collector}}
addressType: IPv4
endpoints: [{addresses: ["%[2]s"], conditions: {ready: true}}]
ports: [{port: %[1]s}]
`, port, bridge(t)))
	for end := time.After(30 * time.Second); ; {
		select {
		case req := <-got:
			if pushed(req, "pushed") == 5 {
				return
			}
		case <-end:
			t.Fatal("nothing came")
		}
	}
}

// pushed is how many requests of a namespace a collector has been told of.
func pushed(req *metricsv1.ExportMetricsServiceRequest, namespace string) (n uint64) {
	for _, rm := range req.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				for _, point := range m.GetHistogram().GetDataPoints() {
					if m.Name == "kn.serving.invocation.duration" && strings.Contains(fmt.Sprint(point.Attributes), namespace) {
						n += point.Count
					}
				}
			}
		}
	}
	return n
}

// told returns the header that the app has got.
func told(t *testing.T, host string, header ...string) http.Header {
	t.Helper()
	var about struct{ Header http.Header }
	if err := json.Unmarshal([]byte(send(t, 1, "GET", host, "/about", "", 200, header...)), &about); err != nil {
		t.Fatal(err)
	}
	return about.Header
}
