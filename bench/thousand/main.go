// SPDX-License-Identifier: Apache-2.0

// Command thousand creates services that never run, and compares what one costs among few and among many.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/bench/measure"
)

var (
	many    = flag.Int("services", 1000, "how many")
	few     = flag.Int("few", 10, "how many are few")
	samples = flag.Int("samples", 30, "how many are created one by one, each time")
	rest    = flag.Duration("rest", 30*time.Second, "how long they rest before they are weighed")
)

const target = 1.3

func main() { measure.Main(bench) }

// A census numbers the services it creates.
type census struct {
	p     *measure.Platform
	image string
	names []string
}

func bench(ctx context.Context, f measure.Flags, dir string) (err error) {
	if f.Peers {
		fmt.Println("thousand has no peer: it compares the platform with itself")
		return nil
	}
	p, err := measure.Start(ctx, f, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	c := &census{p: p}
	if c.image, err = p.Push(ctx, filepath.Join(measure.Root(), "samples", "hello"), "thousandimage"); err != nil {
		return err
	}
	if err := allowZero(ctx, p); err != nil {
		return err
	}
	if f.Attach != "" {
		defer func() { err = errors.Join(err, p.Delete(context.WithoutCancel(ctx), c.names...)) }()
	}
	among := map[int]cost{}
	var weights [2]weight
	for i, n := range []int{*few, *many} {
		if err := c.grow(ctx, n); err != nil {
			return err
		}
		if weights[i], err = c.weigh(ctx); err != nil {
			return err
		}
		if among[n], err = c.sample(ctx); err != nil {
			return err
		}
		fmt.Printf("among %d: %v\n", n, among[n])
	}
	return report(f, among, weights)
}

// allowZero lets services be made that have no pod, not even once.
func allowZero(ctx context.Context, p *measure.Platform) error {
	_, err := p.Core.CoreV1().ConfigMaps("knative-serving").Patch(ctx, "config-autoscaler", types.MergePatchType,
		[]byte(`{"data":{"allow-zero-initial-scale":"true"}}`), metav1.PatchOptions{})
	return err
}

func (c *census) next() measure.Service {
	c.names = append(c.names, fmt.Sprintf("one-%04d", len(c.names)))
	return measure.Service{Name: c.names[len(c.names)-1], Image: c.image, Annotations: map[string]string{"initial-scale": "0"}}
}

// grow creates services until there are n, and waits for the last.
func (c *census) grow(ctx context.Context, n int) error {
	for len(c.names) < n-1 {
		if err := c.p.Create(ctx, c.next()); err != nil {
			return err
		}
	}
	_, err := c.p.CreateReady(ctx, c.next())
	return err
}

// A cost is what a service cost that was created when nothing else was.
type cost struct {
	took measure.Times
	cpu  time.Duration // of all our processes, for each
}

func (c cost) String() string {
	return fmt.Sprintf("created and ready: %v; %s of CPU for each", c.took, measure.Ms(c.cpu))
}

func (c *census) sample(ctx context.Context) (s cost, err error) {
	procs := c.p.Procs()
	before := procs.CPU()
	for range *samples {
		took, err := c.p.CreateReady(ctx, c.next())
		if err != nil {
			return s, err
		}
		s.took = append(s.took, took)
	}
	s.cpu = (procs.CPU() - before) / time.Duration(*samples)
	return s, nil
}

// A weight is the memory of the platform with so many services at rest.
type weight struct {
	services int
	all      int64 // bytes, of all processes
	node     int64 // of the one that the traffic passes
}

func (c *census) weigh(ctx context.Context) (w weight, err error) {
	select {
	case <-time.After(*rest):
	case <-ctx.Done():
		return w, context.Cause(ctx)
	}
	pods, err := c.p.Core.CoreV1().Pods(measure.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "status.phase=" + string(corev1.PodRunning)})
	if err != nil {
		return w, err
	}
	if len(pods.Items) > 0 {
		return w, fmt.Errorf("%d pods run: the services are not idle", len(pods.Items))
	}
	return weight{len(c.names), c.p.Procs().PSS(), c.p.Procs().With("node").PSS()}, nil
}

func report(f measure.Flags, among map[int]cost, w [2]weight) error {
	a, b := among[*few], among[*many]
	each := func(part func(weight) int64) int64 {
		return (part(w[1]) - part(w[0])) / int64(w[1].services-w[0].services)
	}
	node, all := each(func(w weight) int64 { return w.node }), each(func(w weight) int64 { return w.all })
	cpu, took := measure.Ratio(b.cpu, a.cpu), measure.Ratio(b.took.Median(), a.took.Median())
	base := fmt.Sprintf("the same among %d", *few)
	what := fmt.Sprintf("a service created among %d: ", *many)
	rows := []measure.Row{
		{What: what + "CPU of all processes", Ours: measure.Ms(b.cpu), Peers: measure.Ms(a.cpu), Peer: base, Ratio: cpu, Target: "≤ 1.3 ×", Met: cpu <= target},
		{What: what + "until it is ready, median", Ours: measure.Ms(b.took.Median()), Peers: measure.Ms(a.took.Median()), Peer: base, Ratio: took, Target: "≤ 1.3 ×", Met: took <= target},
		{What: "memory of an idle service in the process that traffic passes", Ours: measure.KB(node), Target: "≤ 40 KB", Met: node <= 40_000},
		{What: "memory of an idle service in all processes, the API server and its store included", Ours: measure.KB(all), Unjudged: true},
	}
	notes := fmt.Sprintf("among %d:  %v\namong %d: %v\nmemory: %s with %d services, %s with %d\n", *few, a, *many, b,
		measure.MB(w[0].all), w[0].services, measure.MB(w[1].all), w[1].services)
	return f.Report("thousand", rows, notes)
}
