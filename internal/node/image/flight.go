// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"sync"
)

// flights lets callers that want the same thing at the same time share one
// doing of it. It goes on as long as one of them still waits.
type flights[T any] struct {
	mu sync.Mutex
	m  map[string]*flight[T]
}

type flight[T any] struct {
	cancel  context.CancelFunc
	done    chan struct{}
	val     T
	err     error
	waiters int // guarded by flights.mu; at zero nobody may join any more

	reports sync.Mutex // held while listeners run: each sees one report at a time
	listen  map[int]func(Progress)
	next    int
	last    map[string]Progress // by layer, for who joins late
}

func (f *flights[T]) do(ctx context.Context, key string, listener func(Progress), fn func(context.Context, func(Progress)) (T, error)) (T, error) {
	for {
		fl, mine := f.join(ctx, key, fn)
		if mine {
			return f.wait(ctx, fl, listener)
		}
		// The one there is being given up: it must be over before the next.
		select {
		case <-fl.done:
		case <-ctx.Done():
			var none T
			return none, context.Cause(ctx)
		}
	}
}

// join reports false for a flight that everybody has left.
func (f *flights[T]) join(ctx context.Context, key string, fn func(context.Context, func(Progress)) (T, error)) (*flight[T], bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.m[key]; fl != nil {
		if fl.waiters == 0 {
			return fl, false
		}
		fl.waiters++
		return fl, true
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl := &flight[T]{cancel: cancel, done: make(chan struct{}), waiters: 1, listen: map[int]func(Progress){}, last: map[string]Progress{}}
	if f.m == nil {
		f.m = map[string]*flight[T]{}
	}
	f.m[key] = fl
	go func() {
		defer cancel()
		fl.val, fl.err = fn(own, fl.report)
		f.mu.Lock()
		delete(f.m, key)
		f.mu.Unlock()
		close(fl.done)
	}()
	return fl, true
}

func (f *flights[T]) wait(ctx context.Context, fl *flight[T], listener func(Progress)) (T, error) {
	defer fl.hear(listener)()
	select {
	case <-fl.done:
		return fl.val, fl.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	f.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done // it cleans up after itself
	}
	var none T
	return none, context.Cause(ctx)
}

// hear gives a flight's reports to a listener until the answer is called.
func (fl *flight[T]) hear(listener func(Progress)) (stop func()) {
	if listener == nil {
		return func() {}
	}
	fl.reports.Lock()
	defer fl.reports.Unlock()
	id := fl.next
	fl.next++
	fl.listen[id] = listener
	for _, p := range fl.last {
		listener(p)
	}
	return func() {
		fl.reports.Lock()
		defer fl.reports.Unlock()
		delete(fl.listen, id)
	}
}

func (fl *flight[T]) report(p Progress) {
	fl.reports.Lock()
	defer fl.reports.Unlock()
	fl.last[p.Layer] = p
	for _, l := range fl.listen {
		l(p)
	}
}
