// SPDX-License-Identifier: Apache-2.0

package breaker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func spots(ids ...string) []Spot {
	var s []Spot
	for _, id := range ids {
		s = append(s, Spot{ID: id})
	}
	return s
}

func ready(w *Waiter) bool {
	select {
	case <-w.Ready():
		return true
	default:
		return false
	}
}

func TestNoPodMeansWaiting(t *testing.T) {
	b := New(Limits{}, 0)
	if _, ok := b.Try(0); ok {
		t.Fatal("a place without a pod")
	}
	var line []*Waiter
	for range 1000 {
		w, err := b.Wait(0)
		if err != nil {
			t.Fatal(err)
		}
		line = append(line, w)
	}
	b.SetPods(spots("a", "b"))
	for i, w := range line {
		if !ready(w) {
			t.Fatalf("request %d still waits", i)
		}
	}
	if a, b := b.pods[0].active, b.pods[1].active; a != 500 || b != 500 {
		t.Errorf("%d and %d requests, want them spread evenly", a, b)
	}
	for _, w := range line {
		w.Take().Done(0)
	}
	if s := b.State(0); s.InFlight != 0 || s.Ready != 2 {
		t.Errorf("in the end: %+v", s)
	}
}

func TestLineIsFair(t *testing.T) {
	b := New(Limits{Concurrency: 1}, 0)
	b.SetPods(spots("a"))
	first, ok := b.Try(0)
	if !ok {
		t.Fatal("no place in an idle pod")
	}
	second, _ := b.Wait(0)
	third, _ := b.Wait(0)
	if _, ok := b.Try(0); ok {
		t.Error("overtook the line")
	}
	first.Done(0)
	if _, ok := b.Try(0); ok {
		t.Error("took the place of the head of the line")
	}
	if !ready(second) || ready(third) {
		t.Errorf("second %v, third %v", ready(second), ready(third))
	}
	again := second.Take().Again(0)
	if ready(third) || !ready(again) {
		t.Error("who goes again goes first")
	}
	third.Abandon(0)
	again.Take().Done(0)
	if s := b.State(0); s.InFlight != 0 || s.Held != 0 {
		t.Errorf("in the end: %+v", s)
	}
}

func TestLineIsBounded(t *testing.T) {
	b := New(Limits{Concurrency: 1, Queue: 3}, 0)
	b.SetPods(spots("a", "b"))
	for range 2 {
		if _, ok := b.Try(0); !ok {
			t.Fatal("no place")
		}
	}
	for range 6 {
		if _, err := b.Wait(0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Wait(0); !errors.Is(err, ErrFull) {
		t.Errorf("err = %v, want ErrFull", err)
	}
	b.SetPods(nil)
	if _, err := b.Wait(0); err != nil {
		t.Errorf("while there is no pod: %v", err)
	}
	for b.State(0).Held < Hold {
		if _, err := b.Wait(0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Wait(0); !errors.Is(err, ErrFull) {
		t.Errorf("err = %v, want ErrFull", err)
	}
}

func TestAbandon(t *testing.T) {
	b := New(Limits{Concurrency: 1}, 0)
	first, _ := b.Wait(0)
	second, _ := b.Wait(0)
	third, _ := b.Wait(0)
	second.Abandon(0)
	b.SetPods(spots("a"))
	if !ready(first) || ready(third) {
		t.Fatal("the head of the line comes first")
	}
	// The place had come already: it goes to the next.
	first.Abandon(0)
	if !ready(third) {
		t.Error("an abandoned place was lost")
	}
}

func TestLeavingPod(t *testing.T) {
	b := New(Limits{}, 0)
	b.SetPods(spots("a"))
	lease, _ := b.Try(0)
	b.SetPods(spots("b"))
	drained, _ := b.Drain("a")
	next, ok := b.Try(0)
	if !ok || next.Pod().ID != "b" {
		t.Fatalf("new request went to %+v", next.Pod())
	}
	select {
	case <-drained:
		t.Fatal("drained with a request in it")
	default:
	}
	if s := b.State(0); s.InFlight != 2 || s.Ready != 1 {
		t.Errorf("%+v", s)
	}
	lease.Done(0)
	<-drained
	for _, id := range []string{"a", "unheard of"} {
		idle, calm := b.Drain(id)
		<-idle
		<-calm
	}
	if len(b.leaving) != 0 {
		t.Errorf("kept %v", b.leaving)
	}
}

func TestStreamsAreCalm(t *testing.T) {
	b := New(Limits{}, 0)
	b.SetPods(spots("a"))
	stream, _ := b.Try(0)
	short, _ := b.Try(0)
	stream = stream.Stream()
	b.SetPods(nil)
	idle, calm := b.Drain("a")
	open := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return false
		default:
			return true
		}
	}
	if !open(idle) || !open(calm) {
		t.Fatal("drained with a request in it")
	}
	short.Done(0)
	if !open(idle) || open(calm) {
		t.Fatal("not calm with a stream alone, or idle")
	}
	if _, again := b.Drain("a"); open(again) {
		t.Error("not calm for who comes later")
	}
	stream.Stream().Done(0)
	if open(idle) || len(b.leaving) != 0 {
		t.Error("not idle")
	}
	// The last plain request may become the last stream.
	b.SetPods(spots("a"))
	last, _ := b.Try(0)
	b.SetPods(nil)
	_, calm = b.Drain("a")
	if last = last.Stream(); open(calm) {
		t.Error("not calm")
	}
	last.Done(0)
}

func TestPodComesBack(t *testing.T) {
	b := New(Limits{Concurrency: 1}, 0)
	b.SetPods(spots("a"))
	lease, _ := b.Try(0)
	b.SetPods(nil)
	b.SetPods(spots("a"))
	if _, ok := b.Try(0); ok {
		t.Error("the request that is still in the pod was forgotten")
	}
	lease.Done(0)
	if _, ok := b.Try(0); !ok {
		t.Error("no place in an idle pod")
	}
}

func TestSuspect(t *testing.T) {
	b := New(Limits{}, 0)
	b.SetPods(spots("a", "b"))
	lease, _ := b.Try(0)
	bad := lease.Pod()
	if !b.Suspect(bad) || b.Suspect(bad) {
		t.Error("news once")
	}
	w := lease.Again(0)
	if !ready(w) || w.Take().Pod() == bad {
		t.Fatal("sent to the suspect again")
	}
	b.Suspect(w.Take().Pod())
	last := w.Take().Again(0)
	if ready(last) {
		t.Fatal("sent to a suspect")
	}
	b.Trust(bad)
	if !ready(last) || last.Take().Pod() != bad {
		t.Error("not sent to the one that is trusted again")
	}
}

func TestSample(t *testing.T) {
	b := New(Limits{}, 0)
	b.Wait(0)
	second, _ := b.Wait(500 * time.Millisecond)
	b.SetPods(spots("a"))
	second.Take().Done(750 * time.Millisecond)
	l := b.Sample(time.Second)
	if l.Concurrency != 1.25 || l.Requests != 2 || l.InFlight != 1 || l.Held != 0 || l.Ready != 1 || l.Span != time.Second {
		t.Errorf("%+v", l)
	}
	if l := b.Sample(3 * time.Second); l.Concurrency != 1 || l.Requests != 0 || l.Span != 2*time.Second {
		t.Errorf("%+v", l)
	}
	// A clock that was read before the lock was had does no harm.
	b.Wait(2 * time.Second)
	if l := b.Sample(4 * time.Second); l.Concurrency != 2 {
		t.Errorf("%+v", l)
	}
}

// TestLimitIsExact hammers a breaker while its pods come and go.
func TestLimitIsExact(t *testing.T) {
	const limit = 3
	b := New(Limits{Concurrency: limit}, 0)
	ids := []string{"a", "b", "c", "d"}
	inside := map[string]*atomic.Int32{}
	for _, id := range ids {
		inside[id] = new(atomic.Int32)
	}
	b.SetPods(spots(ids...))
	var requests, others sync.WaitGroup
	done := make(chan struct{})
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				b.SetPods(spots(ids[:1+rand.IntN(4)]...))
			}
		}
	})
	for range 16 {
		requests.Go(func() {
			for range 2000 {
				lease, ok := b.Try(0)
				if !ok {
					w, err := b.Wait(0)
					if err != nil {
						t.Error(err)
						return
					}
					if rand.IntN(10) == 0 {
						w.Abandon(0)
						continue
					}
					<-w.Ready()
					lease = w.Take()
				}
				n := inside[lease.Pod().ID]
				if got := n.Add(1); got > limit {
					t.Errorf("%d requests in a pod", got)
				}
				n.Add(-1)
				lease.Done(0)
			}
		})
	}
	requests.Wait()
	close(done)
	others.Wait()
	if s := b.State(0); s.InFlight != 0 {
		t.Errorf("in the end: %+v", s)
	}
}

func BenchmarkTry(b *testing.B) {
	for _, pods := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(pods), func(b *testing.B) {
			br := New(Limits{Concurrency: 10}, 0)
			var s []Spot
			for i := range pods {
				s = append(s, Spot{ID: fmt.Sprint(i)})
			}
			br.SetPods(s)
			b.ReportAllocs()
			for b.Loop() {
				l, ok := br.Try(0)
				if !ok {
					b.Fatal("no place")
				}
				l.Done(0)
			}
		})
	}
}
