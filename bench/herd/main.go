// SPDX-License-Identifier: Apache-2.0

// Command herd wakes many services from zero at the same moment, beside as many containers of crun.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"time"

	"github.com/sonagi/sonagi/bench/measure"
)

var (
	many   = flag.Int("services", 32, "how many")
	rounds = flag.Int("rounds", 5, "how often")
)

const target = 2 * time.Second

func main() { measure.Main(bench) }

func bench(ctx context.Context, f measure.Flags, dir string) (err error) {
	hello, app := filepath.Join(measure.Root(), "samples", "hello"), filepath.Join(dir, "app")
	if err := measure.BuildApp(ctx, hello, app); err != nil {
		return err
	}
	crun, err := measure.NewCrun(filepath.Join(dir, "crun"), app)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crun.Close()) }()
	peer, ours := &herd{}, &herd{}
	if f.Peers {
		for range *rounds {
			peer.containers(ctx, crun)
		}
		return report(f, nil, peer, nil)
	}
	p, err := measure.Start(ctx, f, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	names, err := create(ctx, p, hello)
	defer func() { err = errors.Join(err, p.Delete(context.WithoutCancel(ctx), names...)) }()
	if err != nil {
		return err
	}
	for range *rounds {
		if err := p.WaitNoPods(ctx, measure.Of(names...)); err != nil {
			return err
		}
		peer.containers(ctx, crun)
		ours.run(*many, func(i int) (time.Duration, error) { return wake(ctx, p, names[i]) })
		fmt.Printf("last first byte %s, crun %s\n", measure.Ms(ours.last[len(ours.last)-1]), measure.Ms(peer.last[len(peer.last)-1]))
	}
	// Once more, watched.
	if err := p.WaitNoPods(ctx, measure.Of(names...)); err != nil {
		return err
	}
	stages := measure.Stages{}
	trace, err := p.Watch(ctx, names...)
	if err != nil {
		return err
	}
	traced := &herd{}
	traced.run(*many, func(i int) (time.Duration, error) {
		d, err := wake(ctx, p, names[i])
		trace.Answered(names[i])
		return d, err
	})
	trace.End(ctx, stages)
	return report(f, ours, peer, stages)
}

func create(ctx context.Context, p *measure.Platform, hello string) (names []string, err error) {
	image, err := p.Push(ctx, hello, "herdimage")
	if err != nil {
		return nil, err
	}
	for i := range *many {
		s := measure.Service{Name: fmt.Sprint("herd-", i), Image: image, Annotations: map[string]string{"window": "6s"}}
		if err := p.Create(ctx, s); err != nil {
			return nil, err
		}
		names = append(names, s.Name)
	}
	_, err = p.WaitReady(ctx, names...)
	return names, err
}

func wake(ctx context.Context, p *measure.Platform, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := measure.Ask(ctx, p.Gateway(), p.Host(name, measure.Namespace), "/")
	if err == nil && a.Status != 200 {
		err = fmt.Errorf("%s: status %d %q", name, a.Status, a.Body)
	}
	return a.FirstByte, err
}

// herd is the times of several rounds: the last of each round, and all.
type herd struct {
	last, all measure.Times
	errs      []error
}

// run does something n times at once.
func (h *herd) run(n int, do func(i int) (time.Duration, error)) {
	times, errs := make(measure.Times, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { times[i], errs[i] = do(i) })
	}
	all.Wait()
	h.last = append(h.last, times.Max())
	h.all = append(h.all, times...)
	h.errs = append(h.errs, nonNil(errors.Join(errs...))...)
}

// containers starts as many with crun.
func (h *herd) containers(ctx context.Context, crun *measure.Crun) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	running := make([]*measure.Container, *many)
	h.run(*many, func(i int) (time.Duration, error) {
		begin := time.Now()
		c, err := crun.Run(ctx)
		if err != nil {
			return 0, err
		}
		running[i] = c
		err = c.FirstAnswer(ctx, "/")
		return time.Since(begin), err
	})
	for _, c := range running {
		if c != nil {
			h.errs = append(h.errs, nonNil(c.Delete())...)
		}
	}
}

func nonNil(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

func report(f measure.Flags, ours, peer *herd, stages measure.Stages) error {
	r := measure.Row{
		What: fmt.Sprintf("%d from zero at once, last first byte (median of %d rounds)", *many, *rounds), Peers: measure.Ms(peer.last.Median()),
		Peer: fmt.Sprintf("%d `crun run` at once", *many), Target: "≤ " + measure.Ms(target) + ", no error", Ratio: math.NaN(), Unjudged: true,
	}
	notes := fmt.Sprintf("crun  %s; worst round %s; %d errors\n", peer.all, measure.Ms(peer.last.Max()), len(peer.errs))
	if ours != nil {
		r.Ours, r.Ratio, r.Unjudged = measure.Ms(ours.last.Median()), measure.Ratio(ours.last.Median(), peer.last.Median()), false
		r.Met = ours.last.Max() <= target && len(ours.errs) == 0
		notes += fmt.Sprintf("ours  %s; worst round %s; %d errors\n", ours.all, measure.Ms(ours.last.Max()), len(ours.errs))
	}
	notes += stages.At(0.5, "the median of the herd") + stages.At(1, "the last of the herd")
	if err := f.Report("herd", []measure.Row{r}, notes); err != nil {
		return err
	}
	if ours != nil {
		return errors.Join(ours.errs...)
	}
	return errors.Join(peer.errs...)
}
