// SPDX-License-Identifier: Apache-2.0

// Package telemetry carries the logs and metrics of this process.
//
// Law: one logger per process, slog with fields, to standard error, which the
// supervisor keeps in a file of bounded size; klog and logr, which the linked
// Kubernetes code speaks, end in the same place.
package telemetry

import (
	"io"
	"log/slog"
	"strings"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// Logger writes text records of at least the given level ("debug", "info",
// "warn", "error"; else info) to w, and becomes klog's sink as well.
func Logger(w io.Writer, process, level string) *slog.Logger {
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: parse(level)})).With("process", process)
	// Kubernetes' libraries tell at info what only their authors need: their errors and warnings are enough.
	klog.SetLoggerWithOptions(logr.FromSlogHandler(quiet(log)), klog.ContextualLogger(true))
	return log
}

// Logr is log for libraries that want a logr.Logger, warnings and errors only.
func Logr(log *slog.Logger) logr.Logger {
	return logr.FromSlogHandler(quiet(log))
}

// quiet is where libraries log: warnings and errors, if nobody mends them.
func quiet(log *slog.Logger) slog.Handler { return atLeast(slog.LevelWarn, calm{log.Handler()}) }

func parse(level string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		return slog.LevelInfo
	}
	return l
}
