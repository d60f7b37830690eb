// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"knative.dev/pkg/observability/tracing"
	"knative.dev/serving/pkg/metrics"

	"github.com/sonagi/sonagi/internal/mesh/gateway"
)

// closeLimit bounds how long the last spans may take to their collector.
const closeLimit = 2 * time.Second

// tracer makes spans. Which requests get any is decided before OpenTelemetry
// hears of them: one that is not sampled costs two random numbers.
type tracer struct {
	config   tracing.Config
	bound    uint64 // of random numbers that are sampled
	provider *tracing.TracerProvider
	tracer   trace.Tracer

	mu   sync.Mutex
	open int           // requests whose spans have not ended
	idle chan struct{} // closed when there are none, for who waits
}

// newTracer returns nil for settings that want no traces.
func newTracer(c tracing.Config) (*tracer, error) {
	if c.Protocol == tracing.ProtocolNone {
		return nil, nil
	}
	t := &tracer{config: c, bound: bound(c)}
	all := c
	all.SamplingRate = 1 // it sees what is sampled only
	about := resource.NewSchemaless(attribute.String("service.name", "sonagi-gateway"))
	var err error
	if t.provider, err = tracing.NewTracerProvider(context.Background(), all, sdktrace.WithResource(about)); err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	t.tracer = t.provider.Tracer("github.com/sonagi/sonagi/internal/mesh/gateway")
	return t, nil
}

// bound is the share of all numbers that the rate stands for.
func bound(c tracing.Config) uint64 {
	switch {
	case c.SamplingRate >= 1, c.Protocol == tracing.ProtocolStdout:
		return math.MaxUint64
	case c.SamplingRate <= 0:
		return 0
	}
	return uint64(c.SamplingRate * (1 << 63) * 2)
}

func (t *tracer) is(c tracing.Config) bool {
	if t == nil {
		return c.Protocol == tracing.ProtocolNone
	}
	return t.config == c
}

func (t *tracer) close() {
	if t == nil {
		return
	}
	t.drain()
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // what cannot be sent any more is lost
}

// drain waits for the spans of requests that are still running, for a while.
func (t *tracer) drain() {
	t.mu.Lock()
	idle := make(chan struct{})
	if t.idle = idle; t.open == 0 {
		t.mu.Unlock()
		return
	}
	t.mu.Unlock()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-idle:
	case <-limit.C:
	}
}

// opened counts the requests that have spans.
func (t *tracer) opened(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open += n; t.open == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// begin decides whether a request is sampled: as whoever began its trace has
// decided, or else by chance.
func (t *tracer) begin(r *gateway.Report) gateway.Trace {
	parent, ok := parseParent(r.Field("traceparent"))
	switch {
	case ok && !parent.IsSampled():
		return nil // the app is told what the client said
	case !ok && (t.bound == 0 || rand.Uint64() > t.bound):
		r.Tell(randomTrace(), randomSpan(), false)
		return nil
	}
	ctx := context.Background()
	if ok {
		if state, err := trace.ParseTraceState(string(r.Field("tracestate"))); err == nil {
			parent = parent.WithTraceState(state)
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	t.opened(1)
	s := &spans{tracer: t}
	s.ctx, s.root = t.tracer.Start(ctx, "gateway", trace.WithTimestamp(r.Began), trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(asked(r)...))
	return s
}

// asked is what is known of a request when it comes.
func asked(r *gateway.Report) []attribute.KeyValue {
	path, query, _ := bytes.Cut(r.Target(), []byte("?"))
	return []attribute.KeyValue{
		attribute.String("http.request.method", string(r.Method())),
		attribute.String("url.scheme", r.Scheme),
		attribute.String("url.path", string(path)),
		attribute.String("url.query", string(query)),
		attribute.String("server.address", string(r.Host())),
		attribute.String("client.address", string(r.Client)),
		attribute.String("user_agent.original", string(r.Field("user-agent"))),
		attribute.String("network.protocol.version", version(r)),
		metrics.K8sNamespaceKey.With(r.Revision.Name.Namespace),
		metrics.ServiceNameKey.With(r.Revision.Service),
		metrics.ConfigurationNameKey.With(r.Revision.Configuration),
		metrics.RevisionNameKey.With(r.Revision.Name.Name),
		metrics.RouteTagNameKey.With(r.Tag),
	}
}

func version(r *gateway.Report) string {
	v := r.Version()
	if v == "HTTP/2.0" {
		return "2"
	}
	return v[len("HTTP/"):]
}

// spans are those of one request.
type spans struct {
	tracer *tracer
	ctx    context.Context
	root   trace.Span
	app    trace.Span
}

// Held implements gateway.Trace. Without a pod it is a cold start that was
// waited for, and otherwise a place.
func (s *spans) Held(from, to time.Time, ready bool) {
	name := "activation"
	if ready {
		name = "queue wait"
	}
	_, span := s.tracer.tracer.Start(s.ctx, name, trace.WithTimestamp(from))
	span.End(trace.WithTimestamp(to))
}

// Forward implements gateway.Trace.
func (s *spans) Forward(to netip.AddrPort) ([16]byte, [8]byte) {
	_, s.app = s.tracer.tracer.Start(s.ctx, "app", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("server.address", to.Addr().String()), attribute.Int("server.port", int(to.Port()))))
	told := s.app.SpanContext()
	return told.TraceID(), told.SpanID()
}

func (s *spans) end(r *gateway.Report) {
	defer s.tracer.opened(-1)
	at := trace.WithTimestamp(r.Began.Add(r.Took))
	status := attribute.Int("http.response.status_code", r.Status)
	for _, span := range []trace.Span{s.app, s.root} {
		if span == nil {
			continue
		}
		span.SetAttributes(status, attribute.Int64("http.response.body.size", r.Out))
		if r.Status >= 500 {
			span.SetStatus(codes.Error, r.Rule)
		}
		span.End(at)
	}
}

// parseParent reads a W3C traceparent. A later version may have more behind
// what is known.
func parseParent(p []byte) (trace.SpanContext, bool) {
	const known = 55
	if len(p) < known || p[2] != '-' || p[35] != '-' || p[52] != '-' {
		return trace.SpanContext{}, false
	}
	var version, flags [1]byte
	var c trace.SpanContextConfig
	for _, f := range []struct {
		into []byte
		text []byte
	}{{version[:], p[:2]}, {c.TraceID[:], p[3:35]}, {c.SpanID[:], p[36:52]}, {flags[:], p[53:55]}} {
		if bytes.ContainsAny(f.text, "ABCDEF") {
			return trace.SpanContext{}, false
		}
		if _, err := hex.Decode(f.into, f.text); err != nil {
			return trace.SpanContext{}, false
		}
	}
	if version[0] == 0xff || version[0] == 0 && len(p) != known || len(p) > known && p[known] != '-' {
		return trace.SpanContext{}, false
	}
	c.TraceFlags, c.Remote = trace.TraceFlags(flags[0]), true
	out := trace.NewSpanContext(c)
	return out, out.IsValid()
}

func randomTrace() (id [16]byte) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64()|1) // never all zero
	return id
}

func randomSpan() (id [8]byte) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64()|1)
	return id
}
