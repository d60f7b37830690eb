// SPDX-License-Identifier: Apache-2.0

// Package queue limits and measures the requests of one app container.
//
// The limit itself is the breaker that serving/activator keeps in front of the
// revision's pods: in one process, what Knative's activator and queue-proxy
// each guard is one count. Requests are counted where they pass, in the Counts
// of their revision. Here is what becomes of that: Metrics writes it in
// Prometheus' text format under Knative's names; a Reporter carries the load,
// sampled each second, and the pokes to the autoscaler over a socket, and
// never makes a request wait.
//
// Wiring: Reporter.Sample is activator.Sample and the activator's poke is
// Reporter.Poke; Metrics.States is activator.States.
package queue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/load"
)

const (
	// sendTimeout bounds one batch. The autoscaler answers in microseconds; a
	// control process that hangs must not make batches pile up.
	sendTimeout = time.Second
	// maxPokes is how many revisions can ask for pods at the same moment; the
	// next sample repeats those that found no place.
	maxPokes = 4096
)

// Reporter sends load to the autoscaler.
type Reporter struct {
	sample func() (time.Duration, []load.Sample)
	log    *slog.Logger
	pokes  chan load.Poke
	client http.Client
}

// NewReporter returns a reporter that sends to the socket. Sample returns the
// load since it was called last, and how long ago that was.
func NewReporter(socket string, sample func() (time.Duration, []load.Sample), log *slog.Logger) *Reporter {
	return &Reporter{
		sample: sample,
		log:    log,
		pokes:  make(chan load.Poke, maxPokes),
		client: http.Client{Timeout: sendTimeout, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
			MaxIdleConnsPerHost: 2,
		}},
	}
}

// SetSample replaces the source of samples. It is called before the task runs,
// where the activator and the reporter need each other.
func (r *Reporter) SetSample(sample func() (time.Duration, []load.Sample)) { r.sample = sample }

// Poke sends a poke at once. It does not wait.
func (r *Reporter) Poke(p load.Poke) {
	select {
	case r.pokes <- p:
	default: // the next sample says that requests are held
	}
}

// Task sends samples and pokes until its context ends.
func (r *Reporter) Task() run.Task {
	return run.Task{Name: "load reporter", Run: func(ctx context.Context) error {
		defer r.client.CloseIdleConnections()
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.sendPokes(ctx)
		}()
		r.sendSamples(ctx)
		<-done
		return nil
	}}
}

func (r *Reporter) sendSamples(ctx context.Context) {
	tick := time.NewTicker(load.Interval)
	defer tick.Stop()
	reachable := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		span, samples := r.sample()
		err := r.send(ctx, load.Batch{Span: span, Samples: samples})
		if up := err == nil; up != reachable && ctx.Err() == nil {
			reachable = up
			r.log.Info("autoscaler", "reachable", up, "err", err)
		}
	}
}

func (r *Reporter) sendPokes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-r.pokes:
			batch := load.Batch{Pokes: []load.Poke{p}}
			for more := true; more; {
				select {
				case p := <-r.pokes:
					batch.Pokes = append(batch.Pokes, p)
				default:
					more = false
				}
			}
			if err := r.send(ctx, batch); err != nil && ctx.Err() == nil {
				r.log.Warn("poke was not delivered", "revision", p.Revision.String(), "err", err)
			}
		}
	}
}

func (r *Reporter) send(ctx context.Context, b load.Batch) error {
	data, err := load.Encode(b)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control"+load.Path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("sending load: %w", err)
	}
	req.Header.Set("Content-Type", load.ContentType)
	// A connection that control has closed is replaced without a second look:
	// a batch that counts twice is better than one that is lost. (Empty: the
	// transport knows, and nothing is sent.)
	req.Header["Idempotency-Key"] = []string{}
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("sending load: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096)) // so that the connection is used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("sending load: autoscaler answered %s", resp.Status)
	}
	return nil
}
