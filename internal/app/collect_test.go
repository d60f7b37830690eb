// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// TestCollectByLoad: work makes collections rare, rest makes memory small.
func TestCollectByLoad(t *testing.T) {
	defer debug.SetGCPercent(100)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- collectByLoad(ctx) }()
	var kept [1024][]byte
	for i := 0; gcPercent() != busyGC; i++ { // what it keeps is less than a third of the room
		kept[i%len(kept)] = make([]byte, 32<<10)
		if ctx.Err() != nil {
			t.Fatalf("at %d%% in spite of the work", gcPercent())
		}
	}
	for tick := time.NewTicker(100 * time.Millisecond); gcPercent() != restGC; <-tick.C {
		if ctx.Err() != nil {
			t.Fatalf("at %d%% in spite of the rest", gcPercent())
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func gcPercent() uint64 {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func TestBusyPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: busyGC, 1 << 20: busyGC, 96 << 20: 100, 64 << 20: 150, 1 << 30: restGC} {
		if got := busyPercent(live); got != want {
			t.Errorf("%d MB live: %d%%, want %d%%", live>>20, got, want)
		}
	}
}
