// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricsv1 "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"knative.dev/pkg/observability/metrics"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
)

// sink is a collector of metrics.
type sink struct {
	collector.UnimplementedMetricsServiceServer
	got chan map[string]*metricsv1.Metric
}

func (s *sink) Export(_ context.Context, r *collector.ExportMetricsServiceRequest) (*collector.ExportMetricsServiceResponse, error) {
	all := map[string]*metricsv1.Metric{}
	for _, rm := range r.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				all[m.Name] = m
			}
		}
	}
	select {
	case s.got <- all:
	default:
	}
	return &collector.ExportMetricsServiceResponse{}, nil
}

func TestPush(t *testing.T) {
	s := &sink{got: make(chan map[string]*metricsv1.Metric, 1)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterMetricsServiceServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var req collector.ExportMetricsServiceRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			t.Error(err)
		}
		_, _ = s.Export(r.Context(), &req)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(web.Close)
	live, counts := counting()
	for _, took := range []time.Duration{time.Millisecond, 30 * time.Millisecond, time.Hour} {
		counts.Add(0, routing.Outcome{Method: routing.MethodOf("GET"), Status: 200, Took: took, Out: 6})
	}
	p := NewPush(&Metrics{Tables: live, States: func(fn func(*routing.Revision, breaker.State)) {
		fn(&routing.Revision{}, breaker.State{InFlight: 5, Held: 2})
	}}, func(endpoint string) string { return endpoint })
	for protocol, endpoint := range map[string]string{metrics.ProtocolGRPC: "http://" + l.Addr().String(), metrics.ProtocolHTTPProtobuf: web.URL + "/v1/metrics"} {
		if err := p.Configure(metrics.Config{Protocol: protocol, Endpoint: endpoint, ExportInterval: 20 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		var got map[string]*metricsv1.Metric
		select {
		case got = <-s.got:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came by", protocol)
		}
		h := got["kn.serving.invocation.duration"].GetHistogram().GetDataPoints()
		if len(h) != 1 || h[0].Count != 3 || h[0].GetSum() != 3600.031 || h[0].BucketCounts[0] != 1 || h[0].BucketCounts[3] != 1 || h[0].BucketCounts[14] != 1 || len(h[0].ExplicitBounds) != 14 {
			t.Error(protocol, h)
		}
		if h := got["http.server.response.body.size"].GetHistogram().GetDataPoints(); len(h) != 1 || h[0].GetSum() != 18 || h[0].BucketCounts[2] != 3 {
			t.Error(protocol, h)
		}
		if g := got["kn.revision.request.active"].GetGauge().GetDataPoints(); len(g) != 1 || g[0].GetAsInt() != 3 {
			t.Error(protocol, g)
		}
	}
	if err := p.Configure(metrics.DefaultConfig()); err != nil || p.stop != nil {
		t.Error("it goes on", err)
	}
}
