// SPDX-License-Identifier: Apache-2.0

// Command up times the start of the platform and weighs it at rest, beside kube-apiserver with etcd alone.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sonagi/sonagi/bench/measure"
	"github.com/sonagi/sonagi/test/platform"
)

var (
	rounds = flag.Int("rounds", 3, "how often")
	rest   = flag.Duration("rest", 30*time.Second, "how long after the start the memory is taken")
)

const (
	startTarget  = 8 * time.Second
	memoryTarget = 450 << 20
)

func main() { measure.Main(bench) }

func bench(ctx context.Context, f measure.Flags, dir string) error {
	bin := filepath.Join(dir, "kubeapiserver")
	if err := build(ctx, bin); err != nil {
		return err
	}
	var peer, first, again taken
	for i := range *rounds {
		if err := peer.server(ctx, bin, filepath.Join(dir, fmt.Sprint("peer", i))); err != nil {
			return err
		}
		if f.Peers {
			continue
		}
		p, err := platform.New(filepath.Join(dir, fmt.Sprint("data", i)))
		if err != nil {
			return err
		}
		err = errors.Join(first.platform(ctx, p), again.platform(ctx, p))
		if err := errors.Join(err, p.Purge(ctx)); err != nil {
			return err
		}
	}
	row := func(what string, ours, his measure.Times) measure.Row {
		r := measure.Row{What: what, Peers: measure.Ms(his.Median()), Peer: "kube-apiserver with etcd alone", Ratio: math.NaN(), Target: "≤ " + measure.Ms(startTarget), Unjudged: f.Peers}
		if !f.Peers {
			r.Ours, r.Ratio, r.Met = measure.Ms(ours.Median()), measure.Ratio(ours.Median(), his.Median()), ours.Median() <= startTarget
		}
		return r
	}
	memory := measure.Row{What: "memory of all processes at rest", Peers: measure.MB(peer.memory()), Peer: "kube-apiserver with etcd alone", Ratio: math.NaN(), Target: "≤ 450 MB", Unjudged: f.Peers}
	if !f.Peers {
		memory.Ours, memory.Ratio, memory.Met = measure.MB(again.memory()), measure.Ratio(again.memory(), peer.memory()), again.memory() <= memoryTarget
	}
	notes := fmt.Sprintf("peer         %s, %s\n", peer.start, measure.MB(peer.memory()))
	if !f.Peers {
		notes += fmt.Sprintf("first start  %s, %s\nrestart      %s, %s\n", first.start, measure.MB(first.memory()), again.start, measure.MB(again.memory()))
	}
	return f.Report("up", []measure.Row{row("first start until all is ready", first.start, peer.start), row("restart until all is ready", again.start, peer.start), memory}, notes)
}

func build(ctx context.Context, bin string) error {
	// Upstream refuses to be of no version.
	const version = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", version, "-o", bin, "./bench/kubeapiserver")
	cmd.Dir = measure.Root()
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the peer: %w\n%s", err, text)
	}
	return nil
}

// taken is what was measured of one program.
type taken struct {
	start measure.Times
	bytes []int64
}

func (t *taken) memory() (sum int64) {
	for _, b := range t.bytes {
		sum += b
	}
	return sum / int64(max(1, len(t.bytes)))
}

func (t *taken) platform(ctx context.Context, p *platform.Platform) error {
	begin := time.Now()
	if err := p.Up(ctx); err != nil {
		return err
	}
	t.start = append(t.start, time.Since(begin))
	if err := wait(ctx, *rest); err != nil {
		return err
	}
	t.bytes = append(t.bytes, measure.ProcsOf(p.DataDir).PSS())
	fmt.Printf("platform: ready after %s, %s after %s\n", measure.Ms(t.start[len(t.start)-1]), measure.MB(t.bytes[len(t.bytes)-1]), *rest)
	return p.Interrupt(ctx)
}

func (t *taken) server(ctx context.Context, bin, dir string) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, bin, "-dir", dir, "-etcd-port", fmt.Sprint(ports[0]), "-peer-port", fmt.Sprint(ports[1]), "-port", fmt.Sprint(ports[2]))
	cmd.Stdout, cmd.Stderr = log, log
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = cmd.Process.Signal(syscall.SIGKILL); _ = cmd.Wait() }()
	if err := ready(ctx, fmt.Sprintf("https://127.0.0.1:%d/readyz", ports[2])); err != nil {
		return err
	}
	t.start = append(t.start, time.Since(begin))
	if err := wait(ctx, *rest); err != nil {
		return err
	}
	t.bytes = append(t.bytes, measure.Procs{cmd.Process.Pid}.PSS())
	fmt.Printf("kube-apiserver: ready after %s, %s after %s\n", measure.Ms(t.start[len(t.start)-1]), measure.MB(t.bytes[len(t.bytes)-1]), *rest)
	return nil
}

// ready asks until the server says that it is ready.
func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // it has just made its certificate
	defer c.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w", url, err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
