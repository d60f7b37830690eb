// SPDX-License-Identifier: Apache-2.0

// Package updown starts and stops the platform, again and again and half-way.
package updown

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

const limit = time.Minute

func start(t *testing.T) *platform.Platform {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the scenarios run containers and therefore need root: sudo make test")
	}
	p, err := platform.New(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := p.Purge(ctx); err != nil {
			t.Error(err)
		}
		nothingLeft(t, p)
		if _, err := os.Stat(p.DataDir); !os.IsNotExist(err) {
			t.Errorf("the data directory is still there after a purge: %v", err)
		}
	})
	return p
}

func nothingLeft(t *testing.T, p *platform.Platform) {
	t.Helper()
	if left := p.Leftovers(); len(left) > 0 {
		t.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func up(t *testing.T, p *platform.Platform) time.Duration {
	t.Helper()
	began := time.Now()
	if err := p.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// $SONAGI_UPDOWN sets how often; 50 is the promise, 5 are enough for every day.
func TestAgainAndAgain(t *testing.T) {
	times := 5
	if text := os.Getenv("SONAGI_UPDOWN"); text != "" {
		var err error
		if times, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t)
	began := time.Now()
	var ups, downs []time.Duration
	for i := range times {
		ups = append(ups, up(t, p))
		if i == 0 {
			if err := p.DeployTool(t.Context(), "cold"); err != nil {
				t.Fatal(err)
			}
			if err := p.Serve(t.Context(), "warm", 2); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Apply(t.Context(), claim); err != nil {
				t.Fatal(err)
			}
		}
		for _, service := range []string{"warm", "cold"} { // real containers, each time
			status, body, err := p.Get(t.Context(), p.Host(service, "default"), "/")
			if err != nil || status != 200 || body != service+"\n" {
				t.Fatalf("start %d: GET %s = %d %q, %v", i+1, service, status, body, err)
			}
		}
		// Both orderly ways to an end, in turn.
		down := time.Now()
		if i%2 == 0 {
			interrupt(t, p)
		} else if _, err := p.Sonagi(t.Context(), "down"); err != nil {
			t.Fatal(err)
		}
		downs = append(downs, time.Since(down))
		nothingLeft(t, p)
	}
	t.Logf("%d ups and downs in %s: up %s at the median and %s at most, down %s and %s", times, time.Since(began).Round(time.Second),
		median(ups), slices.Max(ups).Round(time.Millisecond), median(downs), slices.Max(downs).Round(time.Millisecond))
}

// claim is a volume of the default class, with a pod that has it mounted.
const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2].Round(time.Millisecond)
}

func interrupt(t *testing.T, p *platform.Platform) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := p.Interrupt(ctx); err != nil {
		t.Fatalf("%v\n%s", err, p.Output())
	}
}

// A start that is broken off at any point leaves nothing, and the next one works.
func TestHalfWay(t *testing.T) {
	p := start(t)
	ends := []struct {
		name string
		end  func(t *testing.T)
	}{
		{"Ctrl-C", func(t *testing.T) { interrupt(t, p) }},
		{"Ctrl-C twice", func(t *testing.T) { _ = p.Signal(os.Interrupt); interrupt(t, p) }},
		{"SIGTERM", func(t *testing.T) { _ = p.Signal(syscall.SIGTERM); await(t, p) }},
		{"down", func(t *testing.T) {
			if _, err := p.Sonagi(t.Context(), "down"); err != nil {
				t.Error(err)
			}
			await(t, p)
		}},
		{"down twice", func(t *testing.T) {
			other := make(chan error, 1)
			go func() { _, err := p.Sonagi(t.Context(), "down"); other <- err }()
			_, err := p.Sonagi(t.Context(), "down")
			if both := <-other; err != nil || both != nil {
				t.Error(err, both)
			}
			await(t, p)
		}},
	}
	points := []string{"", "etcd", "gateway", "kube-apiserver", "scheduler"}
	for i, e := range ends {
		point := points[i]
		t.Run(e.name+" after "+strconv.Quote(point), func(t *testing.T) {
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			if point == "" { // as soon as there is something to end
				platform.Eventually(t, limit, func() error {
					_, err := os.Stat(filepath.Join(p.DataDir, "run", "lock"))
					return err
				})
			} else if err := p.Printed(t.Context(), "✓ "+point); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			e.end(t)
			t.Logf("ended after %s", time.Since(began).Round(time.Millisecond))
			if p.Code() != 0 {
				t.Errorf("exit code %d:\n%s", p.Code(), p.Output())
			}
			nothingLeft(t, p)
		})
	}
	up(t, p)
	interrupt(t, p)
	nothingLeft(t, p)
	for range 2 { // down where nothing runs says so, and is no error
		if _, err := p.Sonagi(t.Context(), "down"); err != nil {
			t.Error(err)
		}
	}
}

func await(t *testing.T, p *platform.Platform) {
	t.Helper()
	select {
	case <-p.Ended():
	case <-time.After(limit):
		t.Fatal(fmt.Errorf("the supervisor still runs:\n%s", p.Output()))
	}
}
