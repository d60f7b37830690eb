// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"slices"

	"knative.dev/serving/pkg/apis/serving"

	"github.com/sonagi/sonagi/internal/serving/scale"
)

// gauge is one value of each revision, under the name it has had since 1.19
// and the one before.
type gauge struct {
	name, classic, help string
	value               func(*reading) (float64, bool)
}

// reading is what the metrics say of one revision.
type reading struct {
	labels, classic string
	metric          scale.Metric
	target          float64
	scale.Decision
	replicas, ready int32
}

// Metrics writes what the autoscaler has decided last, in Prometheus' text
// format. Pods that are pending or terminate are not told apart from others:
// the autoscaler sees Deployments, not pods.
func (a *Autoscaler) Metrics() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		all := a.readings()
		var b bytes.Buffer
		for _, g := range gauges() {
			g.write(&b, all)
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b.Bytes()) // whoever asked is gone
	})
}

func (a *Autoscaler) readings() []reading {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]reading, 0, len(a.revisions))
	for name, r := range a.revisions {
		if r.pa == nil {
			continue
		}
		service, configuration := r.pa.Labels[serving.ServiceLabelKey], r.pa.Labels[serving.ConfigurationLabelKey]
		all = append(all, reading{
			labels: fmt.Sprintf(`k8s_namespace_name="%s",kn_service_name="%s",kn_configuration_name="%s",kn_revision_name="%s",otel_scope_name="knative.dev/serving/pkg/autoscaler"`,
				name.Namespace, service, configuration, name.Name),
			classic: fmt.Sprintf(`namespace_name="%s",service_name="%s",configuration_name="%s",revision_name="%s"`,
				name.Namespace, service, configuration, name.Name),
			metric: r.spec.Metric, target: r.spec.Target, Decision: r.said, replicas: r.replicas(), ready: r.target.ready,
		})
	}
	slices.SortFunc(all, func(a, b reading) int { return cmp.Compare(a.labels, b.labels) })
	return all
}

func (g gauge) write(b *bytes.Buffer, all []reading) {
	for _, of := range []struct {
		name   string
		labels func(*reading) string
	}{{g.name, func(r *reading) string { return r.labels }}, {g.classic, func(r *reading) string { return r.classic }}} {
		if of.name == "" {
			continue
		}
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s gauge\n", of.name, g.help, of.name)
		for i := range all {
			if v, ok := g.value(&all[i]); ok {
				fmt.Fprintf(b, "%s{%s} %g\n", of.name, of.labels(&all[i]), v)
			}
		}
	}
}

func gauges() []gauge {
	always := func(value func(*reading) float64) func(*reading) (float64, bool) {
		return func(r *reading) (float64, bool) { return value(r), true }
	}
	known := func(n int32) (float64, bool) { return float64(n), n != scale.Unknown }
	all := []gauge{
		{"kn_revision_pods_desired", "autoscaler_desired_pods", "Number of pods the autoscaler wants to allocate", func(r *reading) (float64, bool) { return known(r.Desired) }},
		{"kn_revision_capacity_excess", "autoscaler_excess_burst_capacity", "Excess burst capacity observed over the stable window", always(func(r *reading) float64 { return float64(r.ExcessBurst) })},
		{"kn_revision_panic_mode", "autoscaler_panic_mode", "If greater than 0 the autoscaler is in panic mode", always(func(r *reading) float64 {
			if r.Panicking {
				return 1
			}
			return 0
		})},
		{"kn_revision_pods_requested", "autoscaler_requested_pods", "Number of pods autoscaler requested from Kubernetes", func(r *reading) (float64, bool) { return known(r.replicas) }},
		{"kn_revision_pods_count", "autoscaler_actual_pods", "Number of pods that are allocated currently", always(func(r *reading) float64 { return float64(r.ready) })},
		{"kn_revision_pods_not_ready_count", "autoscaler_not_ready_pods", "Number of pods that are not ready currently", func(r *reading) (float64, bool) {
			return float64(max(0, r.replicas-r.ready)), r.replicas != scale.Unknown
		}},
	}
	for _, of := range []struct {
		metric                             scale.Metric
		name, stable, panic, target, about string
	}{
		{scale.Concurrency, "kn_revision_concurrency_", "autoscaler_stable_request_concurrency", "autoscaler_panic_request_concurrency", "autoscaler_target_concurrency_per_pod", "request count"},
		{scale.RPS, "kn_revision_rps_", "autoscaler_stable_requests_per_second", "autoscaler_panic_requests_per_second", "autoscaler_target_requests_per_second", "requests-per-second"},
	} {
		only := func(value func(*reading) float64) func(*reading) (float64, bool) {
			return func(r *reading) (float64, bool) { return value(r), r.metric == of.metric }
		}
		all = append(all,
			gauge{of.name + "stable", of.stable, "Average of " + of.about + " per observed pod over the stable window", only(func(r *reading) float64 { return r.Stable })},
			gauge{of.name + "panic", of.panic, "Average of " + of.about + " per observed pod over the panic window", only(func(r *reading) float64 { return r.Panic })},
			gauge{of.name + "target", of.target, "The desired concurrent requests for each pod", only(func(r *reading) float64 { return r.target })})
	}
	return all
}
