// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	profiling "knative.dev/pkg/observability/runtime"
	"knative.dev/serving/pkg/observability"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/mesh/record"
	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/queue"
	"github.com/sonagi/sonagi/internal/wire"
)

// servingMetricsPort is where Prometheus asks, at the bridge: it is reached from
// this machine and from its pods, and not from outside. It is OpenTelemetry's
// port for that; 9090, which Knative's components use, is Prometheus' own, and
// may well be taken on all addresses of this machine.
const servingMetricsPort = 9464

// observation is what is told about requests.
type observation struct {
	records *record.Recorder
	metrics http.Handler
	push    *queue.Push
}

// again looks whether the collector of metrics has another address by now.
func (o observation) again(log *slog.Logger) {
	if err := o.push.Again(); err != nil {
		log.Debug("settings are not taken", "err", err)
	}
}

// configure takes in a ConfigMap.
func (o observation) configure(log *slog.Logger) func(name string, data map[string]string) {
	return func(name string, data map[string]string) {
		o.records.Configure(name, data)
		if name != record.Observability {
			return
		}
		c, err := observability.NewFromMap(data)
		if err == nil {
			err = o.push.Configure(c.RequestMetrics)
		}
		if err != nil {
			log.Warn("settings are not taken", "configMap", name, "err", err)
		}
	}
}

func (s Settings) observation(t *traffic, log *slog.Logger) observation {
	profiles := profiling.NewProfilingHandler()
	records := record.New(record.Options{
		Dir: s.Path("logs"), Watch: t.gateway.Watch, PodName: t.podName,
		Resolve: t.resolve, Lost: func() { t.again(log) },
		Profiling: func(on bool) { profiles.SetEnabled(on) }, Log: log,
	})
	control := overUnix(s.controlSocket())
	known := &queue.Metrics{Tables: t.tables, States: t.activator.States, Dropped: records.Dropped}
	metrics := known.Handler(func(r *http.Request) []byte {
		return s.ask(r.Context(), control, "/metrics")
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("/debug/pprof/", profiles)
	return observation{records: records, metrics: mux, push: queue.NewPush(known, func(endpoint string) string { return record.Resolved(endpoint, t.resolve) })}
}

// ask returns what control answers. While control is away there is nothing of
// it, and what the node knows is served all the same.
func (s Settings) ask(ctx context.Context, client *http.Client, path string) []byte {
	const limit, most = 2 * time.Second, 64 << 20
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control"+path, nil)
	if err != nil {
		return nil
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return text
}

// serveMetrics serves Prometheus. That the port is taken keeps nobody from
// being served.
func (s Settings) serveMetrics(h http.Handler, log *slog.Logger) run.Task {
	return run.Task{Name: "metrics", Run: func(ctx context.Context) error {
		at := net.JoinHostPort(s.BridgeIP().String(), strconv.Itoa(servingMetricsPort))
		l, err := wire.Listen(ctx, at)
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("metrics are not served", "address", at, "err", err)
			}
			<-ctx.Done()
			return nil
		}
		return serve(ctx, &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}, l)
	}}
}

// resolve returns the cluster IP of a Service by a name that pods know it by.
// This process asks the machine's name servers, which do not know it.
func (t *traffic) resolve(host string) string {
	const limit = 2 * time.Second
	labels := strings.SplitN(strings.TrimSuffix(host, "."), ".", 3)
	if len(labels) < 2 || len(labels) == 3 && labels[2] != "svc" && labels[2] != "svc."+t.clusterDomain {
		return host
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var service corev1.Service
	if err := t.api.Get(ctx, client.ObjectKey{Namespace: labels[1], Name: labels[0]}, &service); err != nil {
		return host // not there, or not yet
	}
	if ip, err := netip.ParseAddr(service.Spec.ClusterIP); err == nil {
		return ip.String()
	}
	return host
}

// podName names the pod at an address.
func (t *traffic) podName(addr netip.Addr) string {
	p, ok := t.places.Load(addr)
	if !ok {
		return ""
	}
	return p.(place).name
}
