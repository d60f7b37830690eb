// SPDX-License-Identifier: Apache-2.0

// Command many creates services in a loop, and counts what an idle one costs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/sonagi/sonagi/bench/measure"
)

var (
	many = flag.Int("services", 200, "how many")
	rest = flag.Duration("rest", 30*time.Second, "how long they rest at zero before they are weighed")
)

const target = 20 * time.Second

func main() { measure.Main(bench) }

func bench(ctx context.Context, f measure.Flags, dir string) (err error) {
	if f.Peers {
		fmt.Println("many has no peer that runs here: it would be a cluster with Knative")
		return nil
	}
	p, err := measure.Start(ctx, f, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	image, err := p.Push(ctx, filepath.Join(measure.Root(), "samples", "hello"), "manyimage")
	if err != nil {
		return err
	}
	if err := wait(ctx, *rest); err != nil {
		return err
	}
	before := weigh(p)
	objectsBefore, err := count(ctx, p)
	if err != nil {
		return err
	}
	names := make([]string, *many)
	for i := range names {
		names[i] = fmt.Sprintf("many-%03d", i)
	}
	readiness := make(chan error, 1)
	limit, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var readyAt map[string]time.Time
	go func() {
		var err error
		readyAt, err = p.WaitReady(limit, names...)
		readiness <- err
	}()
	defer func() { err = errors.Join(err, p.Delete(context.WithoutCancel(ctx), names...)) }()
	begin := time.Now()
	for _, name := range names {
		// A short window, so that they need not run long before they are weighed.
		if err := p.Create(ctx, measure.Service{Name: name, Image: image, Annotations: map[string]string{"window": "6s"}}); err != nil {
			return err
		}
	}
	created := time.Now()
	if err := <-readiness; err != nil {
		return err
	}
	allReady := time.Since(created)
	each := perService(begin, readyAt)
	fmt.Printf("created in %s, all ready %s later\n", measure.Ms(created.Sub(begin)), measure.Ms(allReady))
	if err := p.WaitNoPods(limit, measure.Of(names...)); err != nil {
		return err
	}
	if err := wait(ctx, *rest); err != nil {
		return err
	}
	after := weigh(p)
	objects, err := count(ctx, p)
	if err != nil {
		return err
	}
	cpu := p.Procs().CPU()
	if err := wait(ctx, 10*time.Second); err != nil {
		return err
	}
	idle := float64(p.Procs().CPU()-cpu) / float64(10*time.Second)

	perEach := (after - before) / int64(*many)
	notes := fmt.Sprintf("created in %s; the last was ready %s after the last create; seen ready, from the first create: %s\n", measure.Ms(created.Sub(begin)), measure.Ms(allReady), each)
	notes += fmt.Sprintf("memory %s before, %s with %d idle services; they use %.1f %% of a processor\n", measure.MB(before), measure.MB(after), *many, idle*100)
	notes += "objects of each: " + difference(objectsBefore, objects) + "\n"
	rows := []measure.Row{
		{What: fmt.Sprintf("%d services created in a loop, all ready after the last create", *many), Ours: measure.Ms(allReady), Peers: "50 s for 100", Peer: "Knative's control plane, another day", Ratio: math.NaN(), Target: "≤ 20 s", Met: allReady <= target},
		{What: "memory per idle service", Ours: measure.KB(perEach), Peers: "1500 KB in the API server", Peer: "Knative's control plane, another day", Ratio: math.NaN(), Unjudged: true},
	}
	return f.Report("many", rows, notes)
}

func perService(begin time.Time, readyAt map[string]time.Time) (ts measure.Times) {
	for _, at := range readyAt {
		ts = append(ts, at.Sub(begin))
	}
	return ts
}

func weigh(p *measure.Platform) int64 { return p.Procs().PSS() }

// kinds are those of which a service may have objects.
var kinds = []schema.GroupVersionResource{
	measure.Services,
	{Group: "serving.knative.dev", Version: "v1", Resource: "configurations"},
	{Group: "serving.knative.dev", Version: "v1", Resource: "revisions"},
	{Group: "serving.knative.dev", Version: "v1", Resource: "routes"},
	{Group: "autoscaling.internal.knative.dev", Version: "v1alpha1", Resource: "podautoscalers"},
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "apps", Version: "v1", Resource: "replicasets"},
	{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
	{Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "endpoints"},
	{Version: "v1", Resource: "pods"},
	{Version: "v1", Resource: "events"},
}

func count(ctx context.Context, p *measure.Platform) (map[string]int, error) {
	n := map[string]int{}
	for _, kind := range kinds {
		list, err := p.Dynamic.Resource(kind).Namespace(measure.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("counting %s: %w", kind.Resource, err)
		}
		n[strings.Trim(kind.Resource+"."+kind.Group, ".")] = len(list.Items)
	}
	return n, nil
}

func difference(before, after map[string]int) string {
	var parts []string
	sum := 0.
	for kind, n := range after {
		if each := float64(n-before[kind]) / float64(*many); each > 0 {
			parts = append(parts, fmt.Sprintf("%.4g %s", each, kind))
			if kind != "events" {
				sum += each
			}
		}
	}
	slices.Sort(parts)
	return fmt.Sprintf("%.4g without events: %s", sum, strings.Join(parts, ", "))
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
