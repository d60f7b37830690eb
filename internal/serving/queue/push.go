// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"knative.dev/pkg/observability/metrics"
	servingmetrics "knative.dev/serving/pkg/metrics"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
)

// Push sends what Metrics knows to a collector, where config-observability
// names one by its request-metrics-* keys.
type Push struct {
	metrics *Metrics
	resolve func(endpoint string) string
	began   time.Time

	mu     sync.Mutex
	wanted metrics.Config
	config metrics.Config // the same, with the address that the collector had
	stop   func(context.Context) error
}

// NewPush returns a Push that sends nothing yet. Resolve replaces the host of
// an endpoint by its address, if only pods can look it up.
func NewPush(m *Metrics, resolve func(endpoint string) string) *Push {
	none := metrics.DefaultConfig()
	return &Push{metrics: m, resolve: resolve, began: time.Now(), wanted: none, config: none}
}

// pushLimit bounds how long the last values may take to their collector.
const pushLimit = 2 * time.Second

// Configure sends as the settings say from now on.
func (p *Push) Configure(c metrics.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = c
	return p.apply()
}

// Again looks whether the collector has another address by now.
func (p *Push) Again() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apply()
}

func (p *Push) apply() error {
	c := p.wanted
	if c.Endpoint != "" {
		c.Endpoint = p.resolve(c.Endpoint)
	}
	if c == p.config {
		return nil
	}
	exporter, err := exporterOf(c)
	if err != nil {
		return fmt.Errorf("request metrics: %w", err)
	}
	p.config = c
	if stop := p.stop; stop != nil {
		go func() { // it may still have to reach its collector
			ctx, cancel := context.WithTimeout(context.Background(), pushLimit)
			defer cancel()
			_ = stop(ctx)
		}()
		p.stop = nil
	}
	if exporter == nil {
		return nil
	}
	options := []sdkmetric.PeriodicReaderOption{sdkmetric.WithProducer(p)}
	if c.ExportInterval > 0 {
		options = append(options, sdkmetric.WithInterval(c.ExportInterval))
	}
	about := resource.NewSchemaless(attribute.String("service.name", "sonagi-gateway"))
	p.stop = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter, options...)), sdkmetric.WithResource(about)).Shutdown
	return nil
}

// exporterOf returns nil for settings that push nothing.
func exporterOf(c metrics.Config) (sdkmetric.Exporter, error) {
	switch c.Protocol {
	case metrics.ProtocolGRPC:
		return otlpmetricgrpc.New(context.Background(), otlpmetricgrpc.WithEndpointURL(c.Endpoint))
	case metrics.ProtocolHTTPProtobuf:
		return otlpmetrichttp.New(context.Background(), otlpmetrichttp.WithEndpointURL(c.Endpoint))
	}
	return nil, nil
}

// Produce implements sdkmetric.Producer.
func (p *Push) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	now := time.Now()
	var invocations, durations []metricdata.HistogramDataPoint[float64]
	var in, out []metricdata.HistogramDataPoint[int64]
	for _, c := range p.metrics.counted() {
		about := attributesOf(c.Revision)
		for i := range c.statuses {
			s := &c.statuses[i]
			invocations = append(invocations, p.durations(s, now, append(about, attribute.Int("http.response.status_code", s.Status))))
		}
		for i := range c.sums {
			s := &c.sums[i]
			more := append(about, attribute.Int("http.response.status_code", s.Status), attribute.String("http.request.method", s.Method.String()))
			durations = append(durations, p.durations(s, now, more))
			in, out = append(in, p.sizes(&s.In, now, more)), append(out, p.sizes(&s.Out, now, more))
		}
	}
	const cumulative = metricdata.CumulativeTemporality
	return []metricdata.ScopeMetrics{
		{Scope: instrumentation.Scope{Name: "knative.dev/serving/pkg/queue"}, Metrics: append([]metricdata.Metrics{
			{Name: "kn.serving.invocation.duration", Unit: "s", Data: metricdata.Histogram[float64]{Temporality: cumulative, DataPoints: invocations}},
		}, p.states(now)...)},
		{Scope: instrumentation.Scope{Name: "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"}, Metrics: []metricdata.Metrics{
			{Name: "http.server.request.duration", Unit: "s", Data: metricdata.Histogram[float64]{Temporality: cumulative, DataPoints: durations}},
			{Name: "http.server.request.body.size", Unit: "By", Data: metricdata.Histogram[int64]{Temporality: cumulative, DataPoints: in}},
			{Name: "http.server.response.body.size", Unit: "By", Data: metricdata.Histogram[int64]{Temporality: cumulative, DataPoints: out}},
		}},
	}, nil
}

func attributesOf(r *routing.Revision) []attribute.KeyValue {
	all := []attribute.KeyValue{
		servingmetrics.K8sNamespaceKey.With(r.Name.Namespace), servingmetrics.ServiceNameKey.With(r.Service),
		servingmetrics.ConfigurationNameKey.With(r.Configuration), servingmetrics.RevisionNameKey.With(r.Name.Name),
	}
	return all[:len(all):len(all)]
}

func (p *Push) durations(s *routing.Sum, now time.Time, about []attribute.KeyValue) metricdata.HistogramDataPoint[float64] {
	point := metricdata.HistogramDataPoint[float64]{
		Attributes: attribute.NewSet(about...), StartTime: p.began, Time: now,
		Count: s.Count(), Sum: s.Took.Seconds(), BucketCounts: make([]uint64, len(secondsBounds)+1),
	}
	next := 0
	for i, n := range s.Durations {
		point.BucketCounts[next] += n
		if i < len(routing.DurationBounds) && next < len(secondsBounds) && routing.DurationBounds[i] == secondsBounds[next] {
			next++
		}
	}
	for _, b := range secondsBounds {
		point.Bounds = append(point.Bounds, b.Seconds())
	}
	return point
}

func (p *Push) sizes(s *routing.SizeSum, now time.Time, about []attribute.KeyValue) metricdata.HistogramDataPoint[int64] {
	point := metricdata.HistogramDataPoint[int64]{Attributes: attribute.NewSet(about...), StartTime: p.began, Time: now, Sum: s.Bytes}
	for _, n := range s.Buckets {
		point.Count += n
		point.BucketCounts = append(point.BucketCounts, n)
	}
	for _, b := range routing.SizeBounds {
		point.Bounds = append(point.Bounds, float64(b))
	}
	return point
}

// states are the gauges.
func (p *Push) states(now time.Time) []metricdata.Metrics {
	if p.metrics.States == nil {
		return nil
	}
	var depth, queued, active []metricdata.DataPoint[int64]
	p.metrics.States(func(r *routing.Revision, s breaker.State) {
		about := attribute.NewSet(attributesOf(r)...)
		point := func(n int) metricdata.DataPoint[int64] {
			return metricdata.DataPoint[int64]{Attributes: about, Time: now, Value: int64(n)}
		}
		depth, queued, active = append(depth, point(s.InFlight)), append(queued, point(s.Held)), append(active, point(s.InFlight-s.Held))
	})
	gauge := func(name string, points []metricdata.DataPoint[int64]) metricdata.Metrics {
		return metricdata.Metrics{Name: name, Unit: "{request}", Data: metricdata.Gauge[int64]{DataPoints: points}}
	}
	return []metricdata.Metrics{
		gauge("kn.serving.queue.depth", depth), gauge("kn.revision.request.concurrency", depth),
		gauge("kn.revision.request.queued", queued), gauge("kn.revision.request.active", active),
	}
}
