// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// BenchmarkAcquire measures what a starting pod waits for when the pool has
// a sandbox.
func BenchmarkAcquire(b *testing.B) {
	o := testOptions(b)
	const batch = 32
	o.PoolSize = batch
	m := open(b, o)
	n := 0
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		if m.pool.readyCount() == 0 {
			for i := range batch {
				if err := m.Release(b.Context(), fmt.Sprint("pod-", n-1-i)); err != nil {
					b.Fatal(err)
				}
			}
		}
		if n%batch == 0 {
			waitUntil(b, "a full pool", func() bool { return m.pool.readyCount() == batch })
		}
		b.StartTimer()
		start := time.Now()
		if _, err := m.Acquire(b.Context(), fmt.Sprint("pod-", n), "web-00001-deployment-7c9f8d-abcde"); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		n++
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkSandbox measures making and removing one.
func BenchmarkSandbox(b *testing.B) {
	o := testOptions(b)
	o.PoolSize = -1
	m := open(b, o)
	var makes, removes time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		s, err := m.pool.make(false)
		if err != nil {
			b.Fatal(err)
		}
		made := time.Now()
		if err := m.pool.discard(s); err != nil {
			b.Fatal(err)
		}
		makes, removes = makes+made.Sub(start), removes+time.Since(made)
		n++
	}
	b.ReportMetric(float64(makes.Microseconds())/float64(n), "make-µs")
	b.ReportMetric(float64(removes.Microseconds())/float64(n), "remove-µs")
}

func manyServices(n int) []Service {
	base := netip.MustParseAddr("10.143.0.10").As4()
	var all []Service
	for i := range n {
		ip := base
		ip[2], ip[3] = byte(100+i/200), byte(10+i%200)
		all = append(all, Service{
			Name: fmt.Sprintf("ns-%d/web:http", i), ClusterIP: netip.AddrFrom4(ip), Proto: TCP, Port: 80,
			Endpoints: []netip.AddrPort{
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 142, byte(i / 200), ip[3]}), 8080),
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 142, 100 + byte(i/200), ip[3]}), 8080),
			},
		})
	}
	return all
}

// BenchmarkProgram compares a change of one service among a thousand with
// writing them all.
func BenchmarkProgram(b *testing.B) {
	o := testOptions(b)
	o.PoolSize = -1
	m := open(b, o)
	services := manyServices(1000)
	if err := m.Program(b.Context(), services); err != nil {
		b.Fatal(err)
	}
	other := slices.Clone(services[500].Endpoints[:1])
	flip := func() []Service {
		changed := services[500]
		changed.Endpoints, other = other, changed.Endpoints
		services[500] = changed
		return services[500:501]
	}
	b.Run("update-one", func(b *testing.B) {
		for b.Loop() {
			if err := m.Update(b.Context(), flip(), nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("program-one-changed", func(b *testing.B) {
		for b.Loop() {
			flip()
			if err := m.Program(b.Context(), services); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("full", func(b *testing.B) {
		for b.Loop() {
			m.rules.mu.Lock()
			m.rules.stale = true
			m.rules.mu.Unlock()
			if err := m.Program(b.Context(), services); err != nil {
				b.Fatal(err)
			}
		}
	})
}
