// SPDX-License-Identifier: Apache-2.0

package activator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/breaker"
	"github.com/sonagi/sonagi/internal/serving/load"
)

var web = &routing.Revision{Name: routing.Name{Namespace: "ns", Name: "web"}, Port: 8080}

func pod(uid string, ready bool) routing.Endpoint {
	return routing.Endpoint{Revision: web.Name, UID: uid, IP: netip.MustParseAddr("10.0.0.1"), Ready: ready}
}

// pokes records what the autoscaler is told.
type pokes struct {
	mu  sync.Mutex
	all []load.Poke
}

func (p *pokes) add(one load.Poke) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, one)
}

func (p *pokes) list() []load.Poke {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

func (p *pokes) count() int { return len(p.list()) }

func TestHeldRequestsGoToTheFirstPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pokes
		a := New(p.add)
		got := make(chan breaker.Lease, 100)
		for range 100 {
			go func() {
				lease, err := a.Reserve(t.Context(), web)
				if err != nil {
					t.Error(err)
				}
				got <- lease
			}()
		}
		synctest.Wait()
		if p.count() != 1 || p.list()[0].Revision != (load.Revision{Namespace: "ns", Name: "web"}) || p.list()[0].InFlight < 1 {
			t.Errorf("%+v", p.list())
		}
		a.SetEndpoint(pod("a", true))
		for range 100 {
			lease := <-got
			if want := netip.MustParseAddrPort("10.0.0.1:8080"); lease.Pod().Addr != want || lease.Pod().ID != "a" {
				t.Errorf("%+v", lease.Pod())
			}
			a.Release(lease)
		}
		time.Sleep(time.Hour) // of a clock that is ours: nobody is poked for nothing
		if p.count() != 1 {
			t.Errorf("%+v", p.list())
		}
	})
}

func TestPokesAreRepeatedWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pokes
		a := New(p.add)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Reserve(ctx, web); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		var waited []time.Duration
		for _, one := range p.list() {
			waited = append(waited, one.Waited)
		}
		want := []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}
		if fmt.Sprint(waited) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", waited, want)
		}
		// The next need is a new one.
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		a.Reserve(ctx, web)
		if p.count() != 6 {
			t.Errorf("%d pokes", p.count())
		}
	})
}

func TestBusyPodsArePokedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pokes
		a := New(p.add)
		one := *web
		one.Concurrency = 1
		a.SetEndpoint(pod("a", true))
		lease, ok := a.Try(&one)
		if !ok || p.count() != 0 {
			t.Fatal(ok, p.list())
		}
		go func() {
			lease, err := a.Reserve(t.Context(), &one)
			if err == nil {
				a.Release(lease)
			}
		}()
		synctest.Wait()
		if p.count() != 1 {
			t.Errorf("%+v", p.list())
		}
		a.Release(lease)
		synctest.Wait()
		span, samples := a.Sample()
		_ = span
		if len(samples) != 0 && samples[0].InFlight != 0 {
			t.Errorf("%+v", samples)
		}
	})
}

func TestSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(func(load.Poke) {})
		time.Sleep(time.Second)
		a.Sample()
		time.Sleep(500 * time.Millisecond)
		a.SetEndpoint(pod("a", true))
		lease, _ := a.Try(web)
		time.Sleep(500 * time.Millisecond)
		span, samples := a.Sample()
		want := load.Sample{Revision: load.Revision{Namespace: "ns", Name: "web"}, Concurrency: 0.5, Requests: 1, InFlight: 1, Ready: 1}
		if span != time.Second || len(samples) != 1 || samples[0] != want {
			t.Errorf("%v %+v", span, samples)
		}
		a.Release(lease)
		time.Sleep(time.Second)
		if _, samples := a.Sample(); len(samples) != 0 {
			t.Errorf("an idle revision costs %+v", samples)
		}
	})
}

func TestSettingsChange(t *testing.T) {
	a := New(func(load.Poke) {})
	a.SetEndpoint(pod("a", true))
	lease, _ := a.Try(web)
	moved := *web
	moved.Port, moved.Concurrency = 9090, 1
	lease2, ok := a.Try(&moved)
	if !ok || lease2.Pod().Addr.Port() != 9090 {
		t.Errorf("%+v", lease2.Pod())
	}
	if _, ok := a.Try(&moved); ok {
		t.Error("the new limit is not kept")
	}
	a.Release(lease)
	a.Release(lease2)
	a.Forget(web.Name)
	n := 0
	a.States(func(*routing.Revision, breaker.State) { n++ })
	if n != 0 {
		t.Error("not forgotten")
	}
	if _, ok := a.Try(web); !ok {
		t.Error("its pods were forgotten too")
	}
}

func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(func(load.Poke) {})
		a.SetEndpoint(pod("a", true))
		lease, _ := a.Try(web)
		// The only pod cannot be reached. It is tried again after a while, which
		// grows.
		var waits []time.Duration
		for range 8 {
			started := time.Now()
			var err error
			if lease, err = a.Elsewhere(t.Context(), web, lease); err != nil {
				t.Fatal(err)
			}
			waits = append(waits, time.Since(started))
		}
		if waits[0] != minDistrust || waits[1] != 2*minDistrust || waits[7] != maxDistrust {
			t.Error(waits)
		}
		// Another one is there at once.
		go a.SetEndpoint(pod("b", true))
		lease, err := a.Elsewhere(t.Context(), web, lease)
		if err != nil || lease.Pod().ID != "b" {
			t.Error(lease.Pod(), err)
		}
		a.Release(lease)
		a.States(func(_ *routing.Revision, s breaker.State) {
			if s.InFlight != 0 {
				t.Errorf("%+v", s)
			}
		})
		time.Sleep(time.Minute)
	})
}

func TestDrained(t *testing.T) {
	a := New(func(load.Poke) {})
	a.SetEndpoint(pod("a", true))
	lease, _ := a.Try(web)
	gone := pod("a", false)
	gone.Gone = true
	a.SetEndpoint(gone)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Drained(ctx, web.Name, "a"); err == nil {
		t.Error("drained with a request in it")
	}
	go a.Release(lease)
	if err := a.Drained(t.Context(), web.Name, "a"); err != nil {
		t.Error(err)
	}
	if err := a.Drained(t.Context(), routing.Name{Name: "never seen"}, "a"); err != nil {
		t.Error(err)
	}
}

// A pod that leaves waits for requests without end, and for streams only so long.
func TestDrainedButForStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(func(load.Poke) {})
		a.SetEndpoint(pod("a", true))
		stream, _ := a.Try(web)
		stream = stream.Stream()
		long, _ := a.Try(web)
		a.SetEndpoint(pod("a", false))
		since := time.Now()
		time.AfterFunc(2*streamsFor, func() { a.Release(long) })
		if err := a.Drained(t.Context(), web.Name, "a"); err != nil || time.Since(since) != 2*streamsFor {
			t.Error("with a request:", time.Since(since), err)
		}
		since = time.Now()
		if err := a.Drained(t.Context(), web.Name, "a"); err != nil || time.Since(since) != streamsFor {
			t.Error("with a stream:", time.Since(since), err)
		}
		since = time.Now()
		time.AfterFunc(time.Second, func() { a.Release(stream) })
		if err := a.Drained(t.Context(), web.Name, "a"); err != nil || time.Since(since) != time.Second {
			t.Error("with a stream that ends:", time.Since(since), err)
		}
	})
}

func BenchmarkTry(b *testing.B) {
	a := New(func(load.Poke) {})
	a.SetEndpoint(pod("a", true))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			lease, ok := a.Try(web)
			if !ok {
				b.Fatal("no place")
			}
			a.Release(lease)
		}
	})
}
