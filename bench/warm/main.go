// SPDX-License-Identifier: Apache-2.0

// Command warm loads one running service through the gateway, beside nginx and haproxy before the same container.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sonagi/sonagi/bench/measure"
)

var (
	connections = flag.Int("connections", 64, "of the closed loop")
	each        = flag.Duration("for", 5*time.Second, "how long each is loaded in a round")
	rounds      = flag.Int("rounds", 3, "how often")
)

// target is the CPU per request in units of nginx's.
const target = 4.5

func main() { measure.Main(bench) }

func bench(ctx context.Context, f measure.Flags, dir string) (err error) {
	hello := filepath.Join(measure.Root(), "samples", "hello")
	var addr string // of the app, in its container
	var ours *path
	if f.Peers {
		c, closeAll, err := contain(ctx, dir, hello)
		defer closeAll()
		if err != nil {
			return err
		}
		addr = c
	} else {
		p, err := measure.Start(ctx, f, dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Stop()) }()
		defer func() { err = errors.Join(err, p.Delete(context.WithoutCancel(ctx), service)) }()
		if addr, err = run(ctx, p, hello); err != nil {
			return err
		}
		ours = &path{name: "Sonagi", url: "http://" + p.Gateway() + "/", host: p.Host(service, measure.Namespace), procs: p.Procs}
		if strings.HasSuffix(p.Gateway(), ":80") {
			ours.url = "http://127.0.0.1/"
		}
	}
	paths, stop, err := peers(ctx, dir, addr)
	defer stop()
	if err != nil {
		return err
	}
	if ours != nil {
		paths = append(paths, ours)
	}
	// In turns, so that noise hits all of them.
	for range *rounds {
		for _, p := range paths {
			if err := p.load(ctx); err != nil {
				return err
			}
		}
	}
	return report(f, paths, ours)
}

const service = "warm"

// run runs the service, and returns where its only container is reached.
func run(ctx context.Context, p *measure.Platform, hello string) (string, error) {
	image, err := p.Push(ctx, hello, "warmimage")
	if err != nil {
		return "", err
	}
	err = p.Create(ctx, measure.Service{Name: service, Image: image, Annotations: map[string]string{"min-scale": "1", "max-scale": "1"}})
	if err != nil {
		return "", err
	}
	if _, err := p.WaitReady(ctx, service); err != nil {
		return "", err
	}
	pods, err := p.Core.CoreV1().Pods(measure.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "serving.knative.dev/service=" + service})
	if err != nil || len(pods.Items) != 1 {
		return "", fmt.Errorf("%d pods: %w", len(pods.Items), err)
	}
	pod := &pods.Items[0]
	port := 8080
	for _, c := range pod.Spec.Containers {
		for _, cp := range c.Ports {
			port = int(cp.ContainerPort)
		}
	}
	return net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port)), nil
}

func contain(ctx context.Context, dir, hello string) (addr string, closeAll func(), err error) {
	nothing := func() {}
	app := filepath.Join(dir, "app")
	if err := measure.BuildApp(ctx, hello, app); err != nil {
		return "", nothing, err
	}
	crun, err := measure.NewCrun(filepath.Join(dir, "crun"), app)
	if err != nil {
		return "", nothing, err
	}
	c, err := crun.Run(ctx)
	if err != nil {
		return "", func() { _ = crun.Close() }, err
	}
	return c.Addr, func() { _ = errors.Join(c.Delete(), crun.Close()) }, c.FirstAnswer(ctx, "/")
}

// path is a way to the app.
type path struct {
	name      string
	url, host string
	procs     func() measure.Procs // that forward; nil for none
	cpu       time.Duration
	requests  int64
	errs      int64
	perSecond []float64
	p50, p99  measure.Times
}

func (p *path) load(ctx context.Context) error {
	var procs measure.Procs
	if p.procs != nil {
		if procs = p.procs(); len(procs) == 0 {
			return fmt.Errorf("%s: no processes", p.name)
		}
	}
	before := procs.CPU()
	l, err := measure.Wrk(ctx, *connections, *each, p.url, p.host)
	if err != nil {
		return err
	}
	p.cpu += procs.CPU() - before
	p.requests += l.Requests
	p.errs += l.Errors
	p.perSecond = append(p.perSecond, l.PerSecond)
	p.p50, p.p99 = append(p.p50, l.P50), append(p.p99, l.P99)
	fmt.Printf("%-10s %8.0f requests/s, %s of CPU each so far, p50 %s, p99 %s, %d errors\n",
		p.name, l.PerSecond, measure.Us(p.perRequest()), measure.Ms(l.P50), measure.Ms(l.P99), l.Errors)
	return nil
}

func (p *path) perRequest() time.Duration {
	return time.Duration(float64(p.cpu) / float64(max(1, p.requests)))
}

func report(f measure.Flags, paths []*path, ours *path) error {
	var rows []measure.Row
	var notes strings.Builder
	direct := paths[0]
	for _, p := range paths {
		fmt.Fprintf(&notes, "%-10s %s of CPU per request, p50 %s, p99 %s, %d requests, %d errors\n",
			p.name, measure.Us(p.perRequest()), measure.Ms(p.p50.Median()), measure.Ms(p.p99.Median()), p.requests, p.errs)
		if p.procs == nil || p == ours {
			continue
		}
		r := measure.Row{
			What: "CPU per request", Peers: measure.Us(p.perRequest()), Peer: p.name + " as a proxy before the same container", Ratio: math.NaN(), Unjudged: p.name != "nginx" || ours == nil,
		}
		if ours != nil {
			r.Ours, r.Ratio = measure.Us(ours.perRequest()), measure.Ratio(ours.perRequest(), p.perRequest())
		}
		if p.name == "nginx" {
			r.Target, r.Met = fmt.Sprintf("≤ %.1f ×", target), r.Ratio <= target
		}
		rows = append(rows, r)
	}
	if ours != nil {
		for _, q := range []struct {
			name      string
			ours, his time.Duration
		}{{"p50", ours.p50.Median(), direct.p50.Median()}, {"p99", ours.p99.Median(), direct.p99.Median()}} {
			rows = append(rows, measure.Row{
				What: fmt.Sprintf("%s, %d connections, saturated", q.name, *connections), Ours: measure.Ms(q.ours), Peers: measure.Ms(q.his),
				Peer: "the container directly", Ratio: measure.Ratio(q.ours, q.his), Unjudged: true,
			})
		}
	}
	if err := f.Report("warm", rows, notes.String()); err != nil {
		return err
	}
	if ours != nil && ours.errs > 0 {
		return fmt.Errorf("%d of %d requests failed", ours.errs, ours.requests)
	}
	return nil
}
