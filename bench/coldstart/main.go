// SPDX-License-Identifier: Apache-2.0

// Command coldstart times the first answer of a service at zero, beside crun and a bare process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sonagi/sonagi/bench/measure"
)

var (
	runs   = flag.Int("runs", 30, "how often")
	traced = flag.Int("traced", 10, "how often with the API watched, for the stages")
)

func main() { measure.Main(bench) }

func bench(ctx context.Context, f measure.Flags, dir string) (err error) {
	hello := filepath.Join(measure.Root(), "samples", "hello")
	app := filepath.Join(dir, "app")
	if err := measure.BuildApp(ctx, hello, app); err != nil {
		return err
	}
	crun, err := measure.NewCrun(filepath.Join(dir, "crun"), app)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crun.Close()) }()

	var peers peers
	if f.Peers {
		for range *runs {
			if err := peers.run(ctx, app, crun); err != nil {
				return err
			}
		}
		return report(f, nil, peers, nil)
	}
	p, err := measure.Start(ctx, f, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	image, err := p.Push(ctx, hello, "coldimage")
	if err != nil {
		return err
	}
	// The shortest window there is; nothing else differs from a plain service.
	service := measure.Service{Name: "cold", Image: image, Annotations: map[string]string{"window": "6s"}}
	if err := p.Create(ctx, service); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Delete(context.WithoutCancel(ctx), service.Name)) }()
	if _, err := p.WaitReady(ctx, service.Name); err != nil {
		return err
	}
	var ours measure.Times
	stages := measure.Stages{}
	for i := range *runs + *traced {
		if err := p.WaitNoPods(ctx, measure.Of(service.Name)); err != nil {
			return err
		}
		if i < *runs {
			if err := peers.run(ctx, app, crun); err != nil {
				return err
			}
			d, err := wake(ctx, p, service.Name)
			if err != nil {
				return err
			}
			ours = append(ours, d)
			fmt.Fprintf(os.Stderr, "%d of %d: %s, crun %s\n", i+1, *runs, measure.Ms(d), measure.Ms(peers.crun[i]))
			continue
		}
		trace, err := p.Watch(ctx, service.Name)
		if err != nil {
			return err
		}
		if _, err := wake(ctx, p, service.Name); err != nil {
			return err
		}
		trace.Answered(service.Name)
		trace.End(ctx, stages)
	}
	return report(f, ours, peers, stages)
}

func wake(ctx context.Context, p *measure.Platform, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	a, err := measure.Ask(ctx, p.Gateway(), p.Host(name, measure.Namespace), "/")
	if err == nil && a.Status != 200 {
		err = fmt.Errorf("status %d %q", a.Status, a.Body)
	}
	return a.FirstByte, err
}

// peers are timed between our runs: the same noise for all.
type peers struct{ fork, crun measure.Times }

func (p *peers) run(ctx context.Context, app string, crun *measure.Crun) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	d, err := measure.ForkExec(ctx, app)
	if err != nil {
		return fmt.Errorf("bare process: %w", err)
	}
	p.fork = append(p.fork, d)
	begin := time.Now()
	c, err := crun.Run(ctx)
	if err != nil {
		return err
	}
	err = c.FirstAnswer(ctx, "/")
	p.crun = append(p.crun, time.Since(begin))
	return errors.Join(err, c.Delete())
}

func report(f measure.Flags, ours measure.Times, p peers, s measure.Stages) error {
	var rows []measure.Row
	for _, q := range []struct {
		name   string
		q      float64
		target float64
	}{{"median", 0.5, 3}, {"p90", 0.9, 0}, {"p99", 0.99, 0}} {
		r := measure.Row{
			What: "zero to first byte, " + q.name, Peers: measure.Ms(p.crun.Quantile(q.q)), Peer: "`crun run` in a new network namespace", Unjudged: q.target == 0,
		}
		if len(ours) > 0 {
			r.Ours = measure.Ms(ours.Quantile(q.q))
			r.Ratio = measure.Ratio(ours.Quantile(q.q), p.crun.Quantile(q.q))
			r.Met = r.Ratio <= q.target
		} else {
			r.Unjudged = true
		}
		if q.target > 0 {
			r.Target = fmt.Sprintf("≤ %.0f ×", q.target)
		}
		rows = append(rows, r)
	}
	floor := measure.Row{What: "the same, floor", Peers: measure.Ms(p.fork.Median()), Peer: "fork and exec of the sample", Unjudged: true}
	if len(ours) > 0 {
		floor.Ours, floor.Ratio = measure.Ms(ours.Median()), measure.Ratio(ours.Median(), p.fork.Median())
	}
	var notes strings.Builder
	fmt.Fprintf(&notes, "crun  %s\nfork  %s\n", p.crun, p.fork)
	if len(ours) > 0 {
		fmt.Fprintf(&notes, "ours  %s\n", ours)
	}
	notes.WriteString(s.At(0.5, fmt.Sprintf("median of %d runs", *traced)))
	return f.Report("coldstart", append(rows, floor), notes.String())
}
