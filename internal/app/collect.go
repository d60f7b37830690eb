// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// restGC is for a process at rest, where memory counts.
	restGC = 50 // percent
	// busyRoom is what one with work to do may allocate from one collection to
	// the next, as it pays with its time for each. More would tear holes into
	// the heap, between what stays of such a time, that can never be given back.
	busyRoom = 96 << 20 // bytes
	busyGC   = 300      // percent, at most
	// Two collections that follow each other within busyWithin mean work.
	busyWithin = 3 * time.Second
	// restAfter is how long after the last collection of a busy process the memory is given back.
	restAfter = 6 * time.Second
)

// collectByLoad trades memory for time while there is work, until ctx ends.
// It acts only when the collector has run: a process at rest is not woken.
func collectByLoad(ctx context.Context) error {
	ran := make(chan struct{}, 1)
	signalCollections(ctx, ran)
	rest := func() { debug.SetGCPercent(restGC); debug.FreeOSMemory() }
	rest()
	var last time.Time
	calm := time.NewTimer(0)
	defer calm.Stop()
	busy := false
	for {
		select {
		case <-ran:
			now := time.Now()
			busy = busy || now.Sub(last) < busyWithin
			if last = now; busy {
				debug.SetGCPercent(busyPercent(liveHeap()))
				calm.Reset(restAfter)
			}
		case <-calm.C:
			if busy {
				busy = false
				rest()
				last = time.Time{} // that collection was our own
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// busyPercent is the room that a busy process gets, as a share of what lives.
func busyPercent(live uint64) int {
	return int(min(max(busyRoom*100/max(live, 1), restGC), busyGC))
}

// liveHeap is what the last collection has found to live, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// signalCollections sends after each run of the collector, until ctx ends: a
// collection finds an object that nobody holds, whose successor the next finds.
func signalCollections(ctx context.Context, ran chan<- struct{}) {
	type marker struct{ _ *byte } // a pointer keeps it out of the allocator's shared blocks
	runtime.AddCleanup(&marker{}, func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		select {
		case ran <- struct{}{}:
		default:
		}
		signalCollections(ctx, ran)
	}, struct{}{})
}
