// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxAccessLog = 64 << 20 // bytes, and as much again of what was before
	maxPending   = 1 << 20  // bytes that wait to be written
)

// journal takes lines in and writes them to a file a little later.
type journal struct {
	log     *slog.Logger
	dropped atomic.Uint64
	wake    chan struct{}
	file    rotated
	failing bool // which was told once

	mu      sync.Mutex
	pending []byte
}

func newJournal(path string, limit int64, log *slog.Logger) *journal {
	return &journal{log: log, wake: make(chan struct{}, 1), file: rotated{path: path, limit: limit}}
}

// add appends a line, unless too much waits already.
func (j *journal) add(appendLine func([]byte) []byte) {
	j.mu.Lock()
	if len(j.pending) > maxPending {
		j.mu.Unlock()
		j.dropped.Add(1)
		return
	}
	first := len(j.pending) == 0
	j.pending = appendLine(j.pending)
	j.mu.Unlock()
	if first {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// run writes until its context ends. A timer runs only while lines wait.
func (j *journal) run(ctx context.Context) {
	var spare []byte
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer j.file.close()
	for {
		select {
		case <-ctx.Done():
			j.flush(nil)
			return
		case <-j.wake:
		}
		timer.Reset(flushEvery)
		select {
		case <-ctx.Done():
			j.flush(nil)
			return
		case <-timer.C:
		}
		spare = j.flush(spare)
	}
}

// flush writes what waits, and returns its buffer for the time after next.
func (j *journal) flush(spare []byte) []byte {
	j.mu.Lock()
	text := j.pending
	j.pending = spare[:0]
	j.mu.Unlock()
	err := j.file.write(text)
	if err != nil && !j.failing {
		j.log.Warn("writing the access log", "err", err)
	}
	j.failing = err != nil
	return text
}

// rotated is a file that is put aside when it is large, in place of the one
// that was put aside before.
type rotated struct {
	path  string
	limit int64
	f     *os.File
	size  int64
}

func (r *rotated) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if r.f != nil && r.size+int64(len(p)) > r.limit {
		r.close()
		if err := os.Rename(r.path, r.path+".1"); err != nil {
			return fmt.Errorf("putting a log aside: %w", err)
		}
	}
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	n, err := r.f.Write(p)
	r.size += int64(n)
	if err != nil {
		r.close()
		return fmt.Errorf("writing a log: %w", err)
	}
	return nil
}

func (r *rotated) open() error {
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return fmt.Errorf("opening a log: %w", err)
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("opening a log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("opening a log: %w", err)
	}
	r.f, r.size = f, info.Size()
	return nil
}

func (r *rotated) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}
