// SPDX-License-Identifier: Apache-2.0

// Package record writes down what becomes of requests.
//
// It is the gateway's witness: the access log, Knative's request log and
// traces, as config-observability and config-kourier ask for. Settings make a
// new witness that takes the place of the old one; when all is off there is
// none, and requests pay nothing. Nobody waits for a file or a collector: what
// cannot be taken in at once is dropped, and counted.
//
// Wiring: Watch is mesh/gateway's; Configure is given the ConfigMaps as they
// come; Forget is told of revisions that are no more.
package record

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"knative.dev/serving/pkg/observability"

	"github.com/sonagi/sonagi/internal/mesh/gateway"
	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/run"
)

// The ConfigMaps that settings are read from. The second is Kourier's, the
// gateway that comes with Knative: it has the name for the access log.
const (
	Observability = "config-observability"
	Kourier       = "config-kourier"
	accessLogKey  = "enable-service-access-logging"
)

// Options are what a recorder needs.
type Options struct {
	// Dir is where the logs are written: access.log and requests/NAMESPACE/REVISION.log.
	Dir string
	// Watch makes a witness that of all requests to come; nil is none.
	Watch func(gateway.Witness)
	// PodName names the pod at an address. It may be nil.
	PodName func(netip.Addr) string
	// Resolve returns the address of a host that only pods can look up, or the
	// host as it is. It may be nil.
	Resolve func(host string) string
	// Lost is told when a collector could not be reached. It may be nil.
	Lost func()
	// Profiling switches the serving of profiles. It may be nil.
	Profiling func(on bool)
	Log       *slog.Logger
}

// Recorder makes witnesses.
type Recorder struct {
	Options
	access   *journal
	requests *requestLog

	mu     sync.Mutex
	data   map[string]map[string]string
	tracer *tracer // of the settings in force; nil if traces are off
}

// New returns a recorder that records nothing yet.
func New(o Options) *Recorder {
	if o.PodName == nil {
		o.PodName = func(netip.Addr) string { return "" }
	}
	if o.Resolve == nil {
		o.Resolve = func(host string) string { return host }
	}
	if o.Lost == nil {
		o.Lost = func() {}
	}
	if o.Profiling == nil {
		o.Profiling = func(bool) {}
	}
	r := &Recorder{Options: o, data: map[string]map[string]string{}}
	r.access = newJournal(filepath.Join(o.Dir, "access.log"), maxAccessLog, o.Log)
	r.requests = newRequestLog(filepath.Join(o.Dir, "requests"), o.Log)
	return r
}

// Task writes what was taken in until its context ends, and then the rest.
func (r *Recorder) Task() run.Task {
	return run.Task{Name: "request records", Run: func(ctx context.Context) error {
		// The exporters of OpenTelemetry tell of their failures here only.
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
			r.Log.Warn("traces or metrics are not taken", "err", err)
			r.again()
			r.Lost()
		}))
		var both sync.WaitGroup
		both.Go(func() { r.access.run(ctx) })
		both.Go(func() { r.requests.run(ctx) })
		both.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.Watch(nil)
		r.tracer.close()
		r.tracer = nil
		return nil
	}}
}

// Forget removes the request log of a revision that is no more.
func (r *Recorder) Forget(revision routing.Name) { r.requests.forget(revision) }

// Dropped returns how many lines of the access log and of the request log
// could not be taken in.
func (r *Recorder) Dropped() (access, requests uint64) {
	return r.access.dropped.Load(), r.requests.dropped.Load()
}

// Configure takes in a ConfigMap as it is now; one without data may be gone.
func (r *Recorder) Configure(name string, data map[string]string) {
	if name != Observability && name != Kourier {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.data[name]; ok && maps.Equal(old, data) {
		return
	}
	r.data[name] = maps.Clone(data)
	if err := r.apply(); err != nil {
		// Admission refuses what cannot be read: this was there before it.
		r.Log.Warn("settings are not taken", "configMap", name, "err", err)
	}
}

// again looks whether the collector has another address by now.
func (r *Recorder) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tracer == nil {
		return
	}
	if err := r.apply(); err != nil {
		r.Log.Debug("settings are not taken", "err", err)
	}
}

// Resolved replaces the host of an endpoint, unless a certificate would have to
// be for it.
func Resolved(endpoint string, host func(string) string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" {
		return endpoint
	}
	name := u.Hostname()
	at := host(name)
	if at == name {
		return endpoint
	}
	if u.Port() != "" {
		at = net.JoinHostPort(at, u.Port())
	}
	u.Host = at
	return u.String()
}

// apply makes the witness that the settings ask for.
func (r *Recorder) apply() error {
	c, err := observability.NewFromMap(r.data[Observability])
	if err != nil {
		return fmt.Errorf("%s: %w", Observability, err)
	}
	w := &witness{podName: r.PodName}
	if on, err := strconv.ParseBool(r.data[Kourier][accessLogKey]); err == nil && on {
		w.access = r.access
	}
	if c.EnableRequestLog {
		if w.requests, err = r.requests.with(c.RequestLogTemplate); err != nil {
			return fmt.Errorf("%s: %w", Observability, err)
		}
	}
	old := r.tracer
	c.Tracing.Endpoint = Resolved(c.Tracing.Endpoint, r.Resolve)
	if !old.is(c.Tracing) {
		if r.tracer, err = newTracer(c.Tracing); err != nil {
			r.tracer = old
			return fmt.Errorf("%s: %w", Observability, err)
		}
		defer func() { go old.close() }() // it may still have to reach its collector
	}
	w.tracer = r.tracer
	r.Profiling(c.Runtime.ProfilingEnabled())
	if w.access == nil && w.requests == nil && w.tracer == nil {
		r.Watch(nil)
		return nil
	}
	r.Watch(w)
	return nil
}

// witness is what one version of the settings asks for. It does not change.
type witness struct {
	podName  func(netip.Addr) string
	access   *journal  // each nil if it is off
	requests *template // and the log it writes to
	tracer   *tracer
}

// Begin implements gateway.Witness.
func (w *witness) Begin(r *gateway.Report) gateway.Trace {
	if w.tracer == nil {
		return nil
	}
	return w.tracer.begin(r)
}

// End implements gateway.Witness.
func (w *witness) End(r *gateway.Report) {
	if s, ok := r.Trace.(*spans); ok {
		s.end(r)
	}
	if w.access != nil {
		w.access.add(func(line []byte) []byte { return appendAccess(line, r) })
	}
	if w.requests != nil && r.Revision != nil {
		w.requests.take(r, w.podName)
	}
}

// flushEvery is how long a line may wait for others: a write for each would
// cost more than the line.
const flushEvery = 100 * time.Millisecond
