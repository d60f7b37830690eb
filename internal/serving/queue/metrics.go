// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
)

// Metrics writes what was counted, in Prometheus' text format.
type Metrics struct {
	// Tables hold the revisions, which hold the counts.
	Tables *routing.Live
	// States calls its argument with what each revision holds now. It may be nil.
	States func(func(*routing.Revision, breaker.State))
	// Dropped returns how many lines of the access log and of the request log
	// were not taken in. It may be nil.
	Dropped func() (access, requests uint64)
}

// Handler serves the metrics of this process, and then those that others add.
func (m *Metrics) Handler(others ...func(*http.Request) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		m.write(&b)
		for _, other := range others {
			b.Write(other(r))
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b.Bytes()) // the client is gone, and nobody is left to be told
	})
}

// counted is a revision with what was counted of its requests: by status and
// method, and by status alone.
type counted struct {
	*routing.Revision
	sums, statuses []routing.Sum
}

func (m *Metrics) counted() (all []counted) {
	m.Tables.Load().Revisions(func(r *routing.Revision) {
		if sums := r.Counts.Sums(); len(sums) > 0 {
			all = append(all, counted{r, sums, byStatus(sums)})
		}
	})
	slices.SortFunc(all, func(a, b counted) int {
		return cmp.Or(strings.Compare(a.Name.Namespace, b.Name.Namespace), strings.Compare(a.Name.Name, b.Name.Name))
	})
	return all
}

// byStatus adds up what differs in method only; sums are in order of status.
func byStatus(sums []routing.Sum) (all []routing.Sum) {
	for i := range sums {
		s := &sums[i]
		if n := len(all); n == 0 || all[n-1].Status != s.Status {
			all = append(all, routing.Sum{Status: s.Status})
		}
		last := &all[len(all)-1]
		last.Took += s.Took
		for i, n := range s.Durations {
			last.Durations[i] += n
		}
	}
	return all
}

const (
	queueScope     = `otel_scope_name="knative.dev/serving/pkg/queue"`
	activatorScope = `otel_scope_name="knative.dev/serving/pkg/activator"`
	serverScope    = `otel_scope_name="go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"`
)

var (
	// Of names up to 1.18, in milliseconds.
	classicBounds = durations(5, 10, 20, 40, 60, 80, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
	// Of those since 1.19, in seconds.
	secondsBounds = durations(5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)
)

func durations(ms ...int) (all []time.Duration) {
	for _, n := range ms {
		all = append(all, time.Duration(n)*time.Millisecond)
	}
	return all
}

func (m *Metrics) write(b *bytes.Buffer) {
	all := m.counted()
	m.writeInvocations(b, all)
	m.writeServer(b, all)
	m.writeClassic(b, all)
	m.writeStates(b)
	if m.Dropped != nil {
		access, requests := m.Dropped()
		header(b, "sonagi_log_lines_dropped_total", "Lines of the access log and of request logs that could not be taken in", "counter")
		fmt.Fprintf(b, "sonagi_log_lines_dropped_total{log=\"access\"} %d\nsonagi_log_lines_dropped_total{log=\"requests\"} %d\n", access, requests)
	}
}

// writeInvocations writes what queue-proxy has said since 1.19.
func (m *Metrics) writeInvocations(b *bytes.Buffer, all []counted) {
	const name = "kn_serving_invocation_duration_seconds"
	header(b, name, "The duration of task execution", "histogram")
	for _, c := range all {
		for i := range c.statuses {
			s := &c.statuses[i]
			labels := fmt.Sprintf(`%s,http_response_status_code="%d",%s`, revisionLabels(c.Revision), s.Status, queueScope)
			writeDurations(b, name, labels, s, secondsBounds, time.Second)
		}
	}
}

// writeServer writes what OpenTelemetry's server instrumentation says of the
// activator and of queue-proxy since 1.19.
func (m *Metrics) writeServer(b *bytes.Buffer, all []counted) {
	each := func(name, help string, write func(labels string, s *routing.Sum)) {
		header(b, name, help, "histogram")
		for _, c := range all {
			for i := range c.sums {
				s := &c.sums[i]
				write(fmt.Sprintf(`%s,http_request_method="%s",http_response_status_code="%d",%s`,
					revisionLabels(c.Revision), s.Method, s.Status, serverScope), s)
			}
		}
	}
	const duration, in, out = "http_server_request_duration_seconds", "http_server_request_body_size_bytes", "http_server_response_body_size_bytes"
	each(duration, "Duration of HTTP server requests.", func(labels string, s *routing.Sum) {
		writeDurations(b, duration, labels, s, secondsBounds, time.Second)
	})
	each(in, "Size of HTTP server request bodies.", func(labels string, s *routing.Sum) { writeSizes(b, in, labels, &s.In) })
	each(out, "Size of HTTP server response bodies.", func(labels string, s *routing.Sum) { writeSizes(b, out, labels, &s.Out) })
}

// writeClassic writes what dashboards know from before 1.19. What reached the
// app and what was answered in its place was told apart then; it is one here.
func (m *Metrics) writeClassic(b *bytes.Buffer, all []counted) {
	for _, app := range []string{"", "app_"} {
		name := "revision_" + app + "request_count"
		header(b, name, "The number of requests that are routed to the revision", "counter")
		for _, c := range all {
			for i := range c.statuses {
				fmt.Fprintf(b, "%s{%s} %d\n", name, classicLabels(c.Revision, c.statuses[i].Status), c.statuses[i].Count())
			}
		}
		name = "revision_" + app + "request_latencies"
		header(b, name, "The response time in millisecond", "histogram")
		for _, c := range all {
			for i := range c.statuses {
				s := &c.statuses[i]
				writeDurations(b, name, classicLabels(c.Revision, s.Status), s, classicBounds, time.Millisecond)
			}
		}
	}
}

// writeDurations writes those of the buckets that have these bounds.
func writeDurations(b *bytes.Buffer, name, labels string, s *routing.Sum, of []time.Duration, unit time.Duration) {
	var sum uint64
	next := 0
	for i, bound := range routing.DurationBounds {
		sum += s.Durations[i]
		if next < len(of) && bound == of[next] {
			fmt.Fprintf(b, "%s_bucket{%s,le=\"%g\"} %d\n", name, labels, float64(bound)/float64(unit), sum)
			next++
		}
	}
	sum += s.Durations[len(routing.DurationBounds)]
	fmt.Fprintf(b, "%s_bucket{%s,le=\"+Inf\"} %d\n", name, labels, sum)
	fmt.Fprintf(b, "%s_sum{%s} %g\n%s_count{%s} %d\n", name, labels, float64(s.Took)/float64(unit), name, labels, sum)
}

func writeSizes(b *bytes.Buffer, name, labels string, s *routing.SizeSum) {
	var sum uint64
	for i, bound := range routing.SizeBounds {
		sum += s.Buckets[i]
		fmt.Fprintf(b, "%s_bucket{%s,le=\"%d\"} %d\n", name, labels, bound, sum)
	}
	sum += s.Buckets[len(routing.SizeBounds)]
	fmt.Fprintf(b, "%s_bucket{%s,le=\"+Inf\"} %d\n", name, labels, sum)
	fmt.Fprintf(b, "%s_sum{%s} %d\n%s_count{%s} %d\n", name, labels, s.Bytes, name, labels, sum)
}

func (m *Metrics) writeStates(b *bytes.Buffer) {
	if m.States == nil {
		return
	}
	type held struct {
		labels string
		breaker.State
	}
	var all []held
	m.States(func(r *routing.Revision, s breaker.State) { all = append(all, held{revisionLabels(r), s}) })
	slices.SortFunc(all, func(a, b held) int { return strings.Compare(a.labels, b.labels) })
	for _, g := range []struct {
		name, help, scope string
		value             func(breaker.State) int
	}{
		{"revision_queue_depth", "The current number of items in the serving and waiting queue, or not reported if unlimited concurrency", "", func(s breaker.State) int { return s.InFlight }},
		{"kn_serving_queue_depth", "Number of current requests in the queue", queueScope, func(s breaker.State) int { return s.InFlight }},
		{"kn_revision_request_concurrency", "Concurrent requests that are routed to Activator", activatorScope, func(s breaker.State) int { return s.InFlight }},
		{"kn_revision_request_queued", "Number of requests currently queued in the activator waiting for capacity", activatorScope, func(s breaker.State) int { return s.Held }},
		{"kn_revision_request_active", "Number of requests currently being proxied by the activator", activatorScope, func(s breaker.State) int { return s.InFlight - s.Held }},
	} {
		header(b, g.name, g.help, "gauge")
		for _, h := range all {
			labels := h.labels
			if g.scope != "" {
				labels += "," + g.scope
			}
			fmt.Fprintf(b, "%s{%s} %d\n", g.name, labels, g.value(h.State))
		}
	}
}

func header(b *bytes.Buffer, name, help, kind string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// Names are those of Kubernetes objects: nothing in them needs an escape.

func classicLabels(r *routing.Revision, status int) string {
	return fmt.Sprintf(`namespace_name="%s",service_name="%s",configuration_name="%s",revision_name="%s",response_code="%d",response_code_class="%dxx"`,
		r.Name.Namespace, r.Service, r.Configuration, r.Name.Name, status, status/100)
}

func revisionLabels(r *routing.Revision) string {
	return fmt.Sprintf(`k8s_namespace_name="%s",kn_service_name="%s",kn_configuration_name="%s",kn_revision_name="%s"`,
		r.Name.Namespace, r.Service, r.Configuration, r.Name.Name)
}
