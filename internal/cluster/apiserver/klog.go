// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/sonagi/sonagi/internal/telemetry"
)

// bridgeKlog lends upstream's global logger our own, and takes its exit away.
func (s *Server) bridgeKlog() {
	h := quieter{telemetry.Calm(s.log.Handler()), &atomic.Value{}}
	klog.SetSlogLogger(slog.New(h))
	klog.OsExit = func(int) {
		last, _ := h.last.Load().(string)
		select {
		case s.fatal <- errors.New(last):
		default:
		}
		runtime.Goexit()
	}
}

// quieter lowers what upstream says by one level. Its Info tells every step
// of a start, its warnings tell cluster administrators about settings nobody
// here can change, and its errors are mostly the first half of a retry.
type quieter struct {
	slog.Handler
	last *atomic.Value // the message of the last error, for when it was fatal
}

func (q quieter) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError || q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		q.last.Store(r.Message)
	}
	r.Level = lowered(r)
	if !q.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

// lowered: klog hands over its warnings as errors that have no error.
func lowered(r slog.Record) slog.Level {
	if r.Level < slog.LevelError {
		return slog.LevelDebug
	}
	level := slog.LevelDebug
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			level = slog.LevelWarn
		}
		return level == slog.LevelDebug
	})
	return level
}

func (q quieter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quieter{q.Handler.WithAttrs(attrs), q.last}
}

func (q quieter) WithGroup(name string) slog.Handler {
	return quieter{q.Handler.WithGroup(name), q.last}
}
