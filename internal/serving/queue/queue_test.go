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
	"slices"
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

// counting is a table with web, and what it counts.
func counting() (*routing.Live, *routing.Counts) {
	one := *web
	e := (*routing.Table)(nil).Edit()
	e.SetRevision(&one)
	live := &routing.Live{}
	live.Swap(e.Table())
	return live, one.Counts
}

func TestMetrics(t *testing.T) {
	live, counts := counting()
	for i, took := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 30 * time.Millisecond, 3 * time.Second, time.Hour} {
		counts.Add(uint32(i), routing.Outcome{Method: routing.MethodOf([]string{"GET", "PUT"}[i%2]), Status: 200, Took: took, In: int64(i), Out: 100})
	}
	counts.Add(0, routing.Outcome{Status: 503, Took: time.Millisecond})
	m := Metrics{Tables: live, States: func(fn func(*routing.Revision, breaker.State)) {
		fn(web, breaker.State{InFlight: 5, Held: 2, Ready: 1})
	}, Dropped: func() (uint64, uint64) { return 1, 2 }}
	server := httptest.NewServer(m.Handler(func(*http.Request) []byte { return []byte("more 1\n") }))
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
	for _, name := range []string{"revision_request_count", "revision_app_request_count"} {
		if v := value(name, "response_code", "200").Counter.GetValue(); v != 5 {
			t.Error(name, v)
		}
		if v := value(name, "response_code_class", "5xx").Counter.GetValue(); v != 1 {
			t.Error(name, "of errors", v)
		}
	}
	for name, unit := range map[string]float64{"revision_request_latencies": 1, "revision_app_request_latencies": 1, "kn_serving_invocation_duration_seconds": 1000} {
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
	if h := value("http_server_request_duration_seconds", "http_request_method", "PUT").Histogram; h.GetSampleCount() != 2 {
		t.Error("PUT", h.GetSampleCount())
	}
	if h := value("http_server_response_body_size_bytes", "http_request_method", "GET").Histogram; h.GetSampleSum() != 300 || h.Bucket[5].GetCumulativeCount() != 0 || h.Bucket[6].GetCumulativeCount() != 3 {
		t.Error("sizes", h)
	}
	for name, want := range map[string]float64{
		"revision_queue_depth": 5, "kn_serving_queue_depth": 5, "kn_revision_request_concurrency": 5,
		"kn_revision_request_queued": 2, "kn_revision_request_active": 3,
	} {
		if v := value(name, "kn_revision_name", "web-1").Gauge.GetValue(); v != want {
			t.Error(name, v)
		}
	}
	if v := value("sonagi_log_lines_dropped_total", "log", "requests").Counter.GetValue(); v != 2 {
		t.Error("dropped", v)
	}
	if families["more"] == nil {
		t.Error("what others say is missing")
	}
}

func TestBoundsHoldAllBuckets(t *testing.T) {
	for _, of := range [][]time.Duration{classicBounds, secondsBounds} {
		for _, b := range of {
			if !slices.Contains(routing.DurationBounds[:], b) {
				t.Errorf("no bucket up to %s", b)
			}
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

func TestNothingIsWrittenForNothing(t *testing.T) {
	w := httptest.NewRecorder()
	(&Metrics{Tables: &routing.Live{}}).Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
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
