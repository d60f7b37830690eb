// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"time"

	"github.com/sonagi/sonagi/internal/run"
)

// A platform that is never restarted would outlive its leaves; half a day is
// nothing against the months between renewal and expiry.
const keepInterval = 12 * time.Hour

// Keep renews leaves while the platform runs. Servers and clients of the
// files read them again by themselves.
func Keep(dir string, o Options) run.Task {
	return run.Task{Name: "certificates", Run: func(ctx context.Context) error {
		tick := time.NewTicker(keepInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				if _, err := Ensure(dir, o); err != nil {
					return err
				}
			}
		}
	}}
}
