// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
)

// States calls its argument with what each revision holds now.
type States func(func(*routing.Revision, breaker.State))

// Handler writes the metrics in Prometheus' text format.
func (m *Meter) Handler(states States) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		m.write(&b, states)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b.Bytes()) // the client is gone, and nobody is left to be told
	})
}

// family is a histogram's name, its unit and its bounds in milliseconds.
type family struct {
	name, help string
	labels     func(*routing.Revision, int) string
	perUnit    float64 // milliseconds
	bounds     []float64
}

var (
	// Names up to 1.18, which dashboards know, and those since 1.19.
	latencies = family{
		"revision_request_latencies", "The response time in millisecond", classicLabels, 1,
		[]float64{5, 10, 20, 40, 60, 80, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600, 700, 800, 900, 1000, 2000, 5000, 10000, 20000, 50000, 100000},
	}
	durations = family{
		"kn_serving_invocation_duration_seconds", "The duration of task execution", labels, 1000,
		[]float64{5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000},
	}
)

func (m *Meter) write(b *bytes.Buffer, states States) {
	all := m.sorted()
	header(b, "revision_request_count", "The number of requests that are routed to the revision", "counter")
	for _, s := range all {
		for _, h := range *s.statuses.Load() {
			fmt.Fprintf(b, "revision_request_count{%s} %d\n", classicLabels(&s.revision, h.status), h.count())
		}
	}
	for _, f := range []family{latencies, durations} {
		header(b, f.name, f.help, "histogram")
		for _, s := range all {
			for _, h := range *s.statuses.Load() {
				f.write(b, f.labels(&s.revision, h.status), h)
			}
		}
	}
	gauges(b, states)
}

func (m *Meter) sorted() []*series {
	var all []*series
	m.revisions.Range(func(_, v any) bool {
		if s := v.(*series); s.statuses.Load() != nil {
			all = append(all, s)
		}
		return true
	})
	slices.SortFunc(all, func(a, b *series) int {
		return strings.Compare(a.revision.Name.String(), b.revision.Name.String())
	})
	return all
}

func (f family) write(b *bytes.Buffer, labels string, h *histogram) {
	var sum uint64
	next := 0
	for i := range bounds {
		sum += h.buckets[i].Load()
		if next < len(f.bounds) && bounds[i] == f.bounds[next] {
			fmt.Fprintf(b, "%s_bucket{%s,le=\"%g\"} %d\n", f.name, labels, bounds[i]/f.perUnit, sum)
			next++
		}
	}
	sum += h.buckets[len(bounds)].Load()
	fmt.Fprintf(b, "%s_bucket{%s,le=\"+Inf\"} %d\n", f.name, labels, sum)
	fmt.Fprintf(b, "%s_sum{%s} %g\n", f.name, labels, float64(h.nanos.Load())/1e6/f.perUnit)
	fmt.Fprintf(b, "%s_count{%s} %d\n", f.name, labels, sum)
}

func (h *histogram) count() (sum uint64) {
	for i := range h.buckets {
		sum += h.buckets[i].Load()
	}
	return sum
}

func gauges(b *bytes.Buffer, states States) {
	if states == nil {
		return
	}
	type held struct {
		labels string
		breaker.State
	}
	var all []held
	states(func(r *routing.Revision, s breaker.State) { all = append(all, held{revisionLabels(r), s}) })
	slices.SortFunc(all, func(a, b held) int { return strings.Compare(a.labels, b.labels) })
	for _, g := range []struct {
		name, help string
		value      func(breaker.State) int
	}{
		{"revision_queue_depth", "The current number of items in the serving and waiting queue, or not reported if unlimited concurrency", func(s breaker.State) int { return s.InFlight }},
		{"kn_serving_queue_depth", "Number of current requests in the queue", func(s breaker.State) int { return s.InFlight }},
		{"kn_revision_request_concurrency", "Concurrent requests of the revision", func(s breaker.State) int { return s.InFlight }},
		{"kn_revision_request_queued", "Number of requests currently queued in the activator waiting for capacity", func(s breaker.State) int { return s.Held }},
		{"kn_revision_request_active", "Number of requests currently being proxied", func(s breaker.State) int { return s.InFlight - s.Held }},
	} {
		header(b, g.name, g.help, "gauge")
		for _, h := range all {
			fmt.Fprintf(b, "%s{%s} %d\n", g.name, h.labels, g.value(h.State))
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

func labels(r *routing.Revision, status int) string {
	return fmt.Sprintf(`%s,http_response_status_code="%d"`, revisionLabels(r), status)
}

func revisionLabels(r *routing.Revision) string {
	return fmt.Sprintf(`k8s_namespace_name="%s",kn_service_name="%s",kn_configuration_name="%s",kn_revision_name="%s"`,
		r.Name.Namespace, r.Service, r.Configuration, r.Name.Name)
}
