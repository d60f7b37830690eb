// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/serving/load"
)

var web = &routing.Revision{Name: routing.Name{Namespace: "ns", Name: "web-1"}, Service: "web", Configuration: "web"}

func TestMetrics(t *testing.T) {
	var m Meter
	for _, took := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 30 * time.Millisecond, 3 * time.Second, time.Hour} {
		m.Observe(web, 200, took)
	}
	m.Observe(web, 503, time.Millisecond)
	gone := *web
	gone.Name.Name = "gone"
	m.Observe(&gone, 200, 0)
	m.Forget(gone.Name)
	server := httptest.NewServer(m.Handler(func(fn func(*routing.Revision, breaker.State)) {
		fn(web, breaker.State{InFlight: 5, Held: 2, Ready: 1})
	}))
	defer server.Close()
	resp, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	value := func(name, label, is string) *dto.Metric {
		t.Helper()
		for _, one := range families[name].GetMetric() {
			for _, l := range one.Label {
				if l.GetName() == label && l.GetValue() == is {
					return one
				}
			}
		}
		t.Fatalf("no %s with %s=%q", name, label, is)
		return nil
	}
	if v := value("revision_request_count", "response_code", "200").Counter.GetValue(); v != 5 {
		t.Error("count", v)
	}
	if v := value("revision_request_count", "response_code_class", "5xx").Counter.GetValue(); v != 1 {
		t.Error("count of errors", v)
	}
	for name, unit := range map[string]float64{"revision_request_latencies": 1, "kn_serving_invocation_duration_seconds": 1000} {
		label := "response_code"
		if unit == 1000 {
			label = "http_response_status_code"
		}
		h := value(name, label, "200").Histogram
		if h.GetSampleCount() != 5 || h.GetSampleSum()*unit != 3603036 {
			t.Error(name, h.GetSampleCount(), h.GetSampleSum())
		}
		for _, b := range h.Bucket {
			want := uint64(0)
			for _, ms := range []float64{1, 5, 30, 3000, 3.6e6} {
				if ms <= b.GetUpperBound()*unit {
					want++
				}
			}
			if b.GetCumulativeCount() != want {
				t.Errorf("%s: %d up to %g, want %d", name, b.GetCumulativeCount(), b.GetUpperBound(), want)
			}
		}
	}
	for name, want := range map[string]float64{
		"revision_queue_depth": 5, "kn_serving_queue_depth": 5, "kn_revision_request_concurrency": 5,
		"kn_revision_request_queued": 2, "kn_revision_request_active": 3,
	} {
		if v := value(name, "kn_revision_name", "web-1").Gauge.GetValue(); v != want {
			t.Error(name, v)
		}
	}
	if len(families["revision_request_count"].Metric) != 2 {
		t.Error("a forgotten revision is still there")
	}
}

func TestBoundsHoldAllBuckets(t *testing.T) {
	for _, f := range []family{latencies, durations} {
		next := 0
		for _, b := range bounds {
			if next < len(f.bounds) && b == f.bounds[next] {
				next++
			}
		}
		if next != len(f.bounds) {
			t.Errorf("%s: no bucket for %g", f.name, f.bounds[next])
		}
	}
}

// control is the autoscaler's side of the socket.
func control(t testing.TB, path string, batches chan<- load.Batch) *http.Server {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		b, err := load.Decode(data)
		if err != nil || r.Method != "POST" || r.URL.Path != load.Path || r.Header.Get("Content-Type") != load.ContentType {
			t.Error(r.Method, r.URL, err)
		}
		w.WriteHeader(http.StatusNoContent)
		batches <- b
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestReporter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	batches := make(chan load.Batch, 1000)
	first := control(t, path, batches)
	name := load.Revision{Namespace: "ns", Name: "web"}
	r := NewReporter(path, func() (time.Duration, []load.Sample) {
		return time.Second, []load.Sample{{Revision: name, InFlight: 1}}
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Task().Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	r.Poke(load.Poke{Revision: name, InFlight: 3})
	if b := <-batches; len(b.Pokes) != 1 || b.Pokes[0].InFlight != 3 || b.Span != 0 {
		t.Errorf("%+v", b)
	}
	if b := <-batches; b.Span != time.Second || len(b.Samples) != 1 {
		t.Errorf("%+v", b)
	}
	// Control goes, and a poke is lost without anybody waiting. It comes back.
	first.Close()
	for range 2 * maxPokes {
		r.Poke(load.Poke{Revision: name})
	}
	control(t, path, batches)
	for b := range batches {
		if len(b.Samples) == 1 {
			break
		}
	}
	r.Poke(load.Poke{Revision: name, InFlight: 7})
	for b := range batches {
		if len(b.Pokes) > 0 && b.Pokes[len(b.Pokes)-1].InFlight == 7 {
			break
		}
	}
	cancel()
	<-done
}

func BenchmarkObserve(b *testing.B) {
	var m Meter
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(web, 200, 300*time.Microsecond)
	}
}

func TestNothingIsWrittenForNothing(t *testing.T) {
	w := httptest.NewRecorder()
	new(Meter).Handler(nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			t.Error(line)
		}
	}
}

// BenchmarkPoke is the time from a poke to its arrival in the other process, or
// what plays it here.
func BenchmarkPoke(b *testing.B) {
	path := filepath.Join(b.TempDir(), "control.sock")
	batches := make(chan load.Batch, 1000)
	control(b, path, batches)
	r := NewReporter(path, func() (time.Duration, []load.Sample) { return time.Second, nil }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go r.Task().Run(ctx)
	for b.Loop() {
		r.Poke(load.Poke{Revision: load.Revision{Namespace: "ns", Name: "web"}, InFlight: 1})
		for batch := range batches {
			if len(batch.Pokes) > 0 {
				break
			}
		}
	}
}
