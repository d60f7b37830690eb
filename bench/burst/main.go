// SPDX-License-Identifier: Apache-2.0

// Command burst sends many requests at once to a service at zero that needs many pods, beside as many containers of crun.
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
	pods   = flag.Int("pods", 20, "how many are needed")
	each   = flag.Int("each", 10, "how many requests a pod takes at once")
	ms     = flag.Int("ms", 1000, "how long a request takes in the pod")
	rounds = flag.Int("rounds", 3, "how often")
)

func main() { measure.Main(bench) }

func bench(ctx context.Context, f measure.Flags, dir string) (err error) {
	source, app := filepath.Join(measure.Root(), "bench", "app"), filepath.Join(dir, "app")
	if err := measure.BuildApp(ctx, source, app); err != nil {
		return err
	}
	crun, err := measure.NewCrun(filepath.Join(dir, "crun"), app)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, crun.Close()) }()
	var ours, peer bursts
	if f.Peers {
		for range *rounds {
			peer.add(contain(ctx, crun))
		}
		return report(f, ours, peer)
	}
	p, err := measure.Start(ctx, f, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	image, err := p.Push(ctx, source, "burstimage")
	if err != nil {
		return err
	}
	service := measure.Service{
		Name: "burst", Image: image, Concurrency: int64(*each),
		Annotations: map[string]string{"window": "6s", "max-scale": fmt.Sprint(*pods), "target-utilization-percentage": "100"},
	}
	if err := p.Create(ctx, service); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Delete(context.WithoutCancel(ctx), service.Name)) }()
	if _, err := p.WaitReady(ctx, service.Name); err != nil {
		return err
	}
	for range *rounds {
		if err := p.WaitNoPods(ctx, measure.Of(service.Name)); err != nil {
			return err
		}
		peer.add(contain(ctx, crun))
		ours.add(send(ctx, func(int) (string, string) { return p.Gateway(), p.Host(service.Name, measure.Namespace) }))
		last := len(ours.last) - 1
		fmt.Printf("last first byte %s from %d pods, crun %s\n", measure.Ms(ours.last[last]), ours.hosts[last], measure.Ms(peer.last[last]))
	}
	return report(f, ours, peer)
}

// bursts are the results of several rounds.
type bursts struct {
	last  measure.Times
	hosts []int
	lost  []error
}

func (b *bursts) add(last time.Duration, hosts int, lost []error) {
	b.last, b.hosts, b.lost = append(b.last, last), append(b.hosts, hosts), append(b.lost, lost...)
}

// send sends all requests at once.
func send(ctx context.Context, to func(i int) (addr, host string)) (last time.Duration, hosts int, lost []error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var mu sync.Mutex
	seen := map[string]bool{}
	var all sync.WaitGroup
	for i := range *pods * *each {
		all.Go(func() {
			addr, host := to(i)
			a, err := measure.Ask(ctx, addr, host, fmt.Sprint("/?ms=", *ms))
			mu.Lock()
			defer mu.Unlock()
			if err != nil || a.Status != 200 {
				lost = append(lost, fmt.Errorf("request %d: status %d %q: %w", i, a.Status, a.Body, err))
				return
			}
			last, seen[a.Body] = max(last, a.FirstByte), true
		})
	}
	all.Wait()
	return last, len(seen), lost
}

// contain starts the containers at once; each gets its requests when it first answers.
func contain(ctx context.Context, crun *measure.Crun) (last time.Duration, hosts int, lost []error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	running, errs := make([]*measure.Container, *pods), make([]error, *pods)
	begin := time.Now()
	var all sync.WaitGroup
	for i := range *pods {
		all.Go(func() {
			if running[i], errs[i] = crun.Run(ctx); errs[i] != nil {
				return
			}
			if errs[i] = running[i].FirstAnswer(ctx, "/"); errs[i] != nil {
				return
			}
			var requests sync.WaitGroup
			for range *each {
				requests.Go(func() {
					if _, err := measure.Ask(ctx, running[i].Addr, "bench", fmt.Sprint("/?ms=", *ms)); err != nil {
						errs[i] = err
					}
				})
			}
			requests.Wait()
		})
	}
	all.Wait()
	last = time.Since(begin)
	for i, c := range running {
		if c != nil {
			errs[i] = errors.Join(errs[i], c.Delete())
		}
		if errs[i] != nil {
			lost = append(lost, errs[i])
		}
	}
	return last, *pods, lost
}

func report(f measure.Flags, ours, peer bursts) error {
	r := measure.Row{
		What:  fmt.Sprintf("0 to %d pods under %d requests of %s, last first byte (median of %d rounds)", *pods, *pods**each, measure.Ms(time.Duration(*ms)*time.Millisecond), *rounds),
		Peers: measure.Ms(peer.last.Median()), Peer: fmt.Sprintf("%d `crun run` at once, %d requests to each", *pods, *each),
		Ratio: math.NaN(), Target: "no request lost", Unjudged: len(ours.last) == 0,
	}
	notes := fmt.Sprintf("crun  worst round %s, %d lost\n", measure.Ms(peer.last.Max()), len(peer.lost))
	if len(ours.last) > 0 {
		r.Ours, r.Ratio, r.Met = measure.Ms(ours.last.Median()), measure.Ratio(ours.last.Median(), peer.last.Median()), len(ours.lost) == 0
		notes += fmt.Sprintf("ours  worst round %s, %d lost, answers from %d pods\n", measure.Ms(ours.last.Max()), len(ours.lost), ours.hosts)
	}
	return errors.Join(f.Report("burst", []measure.Row{r}, notes), errors.Join(ours.lost...), errors.Join(peer.lost...))
}
