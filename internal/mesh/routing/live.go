// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"context"
	"sync"
	"sync/atomic"
)

// Live shows the current table to everybody. Its zero value has none yet.
type Live struct {
	table   atomic.Pointer[Table]
	mu      sync.Mutex
	changed chan struct{}
}

// Load returns the current table: nil until the first Swap.
func (l *Live) Load() *Table { return l.table.Load() }

// Swap shows a new table and wakes everybody who waits for one.
func (l *Live) Swap(t *Table) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Store(t)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Wait returns the first table that ok accepts; the current one counts.
func (l *Live) Wait(ctx context.Context, ok func(*Table) bool) (*Table, error) {
	for {
		changed := l.change()
		if t := l.Load(); ok(t) {
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return l.Load(), context.Cause(ctx)
		}
	}
}

// change returns a channel that the next Swap closes.
func (l *Live) change() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}
