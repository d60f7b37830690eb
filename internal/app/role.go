// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/supervise"
	"github.com/sonagi/sonagi/internal/telemetry"
)

// A role builds its stages; they are started in that order and ended in reverse.
type role func(ctx context.Context, s Settings, log *slog.Logger) ([][]run.Task, error)

// A start makes much that it keeps, and is short: collecting during it costs
// time and gives little back.
const startGC = 400 // percent

// play runs a role as a child of the supervisor. Without its supervisor a child
// leaves at once and tidies nothing up, so that the next one can adopt all of it.
func play(ctx context.Context, name string, s Settings, build role) error {
	const orphaned = 3
	debug.SetGCPercent(startGC)
	report := supervise.Attach(func() { os.Exit(orphaned) })
	log := telemetry.Logger(os.Stderr, name, s.LogLevel)
	ctrl.SetLogger(telemetry.Logr(log)) // controller-runtime keeps one for what it logs by itself
	stages, err := build(ctx, s, log)
	if err == nil {
		stages = append(stages, []run.Task{{Run: func(ctx context.Context) error {
			report.AllReady()
			return collectByLoad(ctx)
		}}})
		err = run.Stages(ctx, report, stages...)
	}
	if err != nil {
		report.Failed(err)
	}
	return err
}
