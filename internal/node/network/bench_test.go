// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
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

// BenchmarkBurst measures how long the last of many pods waits that start at
// the same moment, with a pool for but a few of them.
func BenchmarkBurst(b *testing.B) {
	const pods = 32
	m := open(b, testOptions(b))
	var last, gone time.Duration
	n := 0
	for b.Loop() {
		waitUntil(b, "a full pool", func() bool { return m.pool.readyCount() == 4 })
		all := func(do func(uid string) error) time.Duration {
			var wg sync.WaitGroup
			start := time.Now()
			for i := range pods {
				wg.Go(func() {
					if err := do(fmt.Sprint("pod-", i)); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
			return time.Since(start)
		}
		last += all(func(uid string) error { _, err := m.Acquire(b.Context(), uid, uid); return err })
		gone += all(func(uid string) error { return m.Release(b.Context(), uid) })
		n++
	}
	b.ReportMetric(float64(last.Milliseconds())/float64(n), "last-ms")
	b.ReportMetric(float64(gone.Milliseconds())/float64(n), "removed-ms")
}

// BenchmarkConnect measures what the pods' network adds to a connection:
// from the host to a pod's address, to its service, and within the host.
func BenchmarkConnect(b *testing.B) {
	m := open(b, testOptions(b))
	s := acquire(b, m, "pod")
	serve(b, s.NetNS, ":8080", "pod")
	serve(b, ownNS, "127.0.0.1:8080", "host")
	services := append(manyServices(1000), Service{
		Name: "z/web:http", ClusterIP: netip.MustParseAddr("10.143.0.20"), Proto: TCP, Port: 80, Endpoints: []netip.AddrPort{endpoint(s, 8080)},
	})
	if err := m.Program(b.Context(), services); err != nil {
		b.Fatal(err)
	}
	for name, addr := range map[string]string{"loopback": "127.0.0.1:8080", "pod": endpoint(s, 8080).String(), "service-of-1000": "10.143.0.20:80"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				c.(*net.TCPConn).SetLinger(0)
				if _, err := c.Read(make([]byte, 64)); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
