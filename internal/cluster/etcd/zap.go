// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zap returns the logger the library is given: it writes warnings and worse
// to slog, and turns Fatal and Panic into an error of the server.
func (s *Server) zap() *zap.Logger {
	ending := ending{s.broken}
	return zap.New(bridge{log: s.log, stopping: s.stopping}, zap.WithFatalHook(ending), zap.WithPanicHook(ending))
}

// An ending reports the last words of a goroutine and ends it, instead of the process.
type ending struct{ broken chan<- error }

func (e ending) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(entry.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = fmt.Errorf("%w: %w", err, cause)
		}
	}
	select {
	case e.broken <- err:
	default: // the first complaint is the cause
	}
	runtime.Goexit()
}

// A bridge is a zap core that writes to slog. The library's Info is the diary
// of a cluster, and its warnings are about slow peers and disks: of one member
// the first is not worth having, the second is for whoever looks for a cause.
type bridge struct {
	log      *slog.Logger
	fields   []zapcore.Field
	stopping <-chan struct{} // closed when complaints are about what was asked for
}

func (bridge) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	return bridge{b.log, append(b.fields[:len(b.fields):len(b.fields)], fields...), b.stopping}
}

func (b bridge) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(entry.Level) {
		return checked.AddCore(entry, b)
	}
	return checked
}

func (b bridge) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	select {
	case <-b.stopping:
		return nil
	default:
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range b.fields {
		f.AddTo(encoder)
	}
	for _, f := range fields {
		f.AddTo(encoder)
	}
	attrs := make([]slog.Attr, 0, len(encoder.Fields))
	for key, value := range encoder.Fields {
		attrs = append(attrs, slog.Any(key, value))
	}
	b.log.LogAttrs(context.Background(), level(entry.Level), entry.Message, attrs...)
	return nil
}

func (bridge) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}
