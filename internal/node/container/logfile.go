// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	maxLogLine  = 16 << 10 // longer lines are cut into parts, as Kubernetes' log readers expect
	maxLogFile  = 10 << 20
	maxLogFiles = 5
)

// A logFile keeps what a container writes, in the log format of Kubernetes'
// container runtime interface: time, stream, F for a whole line or P for a
// part of one, text. It is bounded: a full file is moved aside, and the oldest
// of those is removed.
type logFile struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	file    *os.File
	size    int64
	out     []byte            // reused from write to write
	partial map[string][]byte // the line that each stream has begun
}

// openLog opens the log at path. With no path, what is written is dropped.
func openLog(path string) (*logFile, error) {
	l := &logFile{path: path, now: time.Now, partial: map[string][]byte{}}
	if path == "" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("log: %w", err)
	}
	l.file, l.size = f, info.Size()
	return nil
}

// reopen goes on in a new file at path, after someone moved the old one.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
	if l.path == "" {
		return nil
	}
	return l.open()
}

// write adds what was read from stream. An incomplete line waits for its end.
func (l *logFile) write(stream string, p []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	stamp := l.now().UTC().Format(time.RFC3339Nano)
	l.out = l.out[:0]
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		line := p
		if end >= 0 {
			line = p[:end]
		}
		held := l.partial[stream]
		switch room := maxLogLine - len(held); {
		case len(line) > room:
			l.line(stamp, stream, 'P', held, line[:room])
			l.partial[stream] = nil
			p = p[room:]
		case end < 0:
			l.partial[stream] = append(held, line...)
			p = nil
		default:
			l.line(stamp, stream, 'F', held, line)
			l.partial[stream] = nil
			p = p[end+1:]
		}
	}
	return l.flush()
}

func (l *logFile) line(stamp, stream string, tag byte, parts ...[]byte) {
	l.out = append(append(append(append(l.out, stamp...), ' '), stream...), ' ', tag, ' ')
	for _, part := range parts {
		l.out = append(l.out, part...)
	}
	l.out = append(l.out, '\n')
}

func (l *logFile) flush() error {
	if len(l.out) == 0 {
		return nil
	}
	if l.size > 0 && l.size+int64(len(l.out)) > maxLogFile {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(l.out)
	l.size += int64(n)
	if cap(l.out) > 4*maxLogLine {
		l.out = nil
	}
	return err
}

// rotate moves the full file aside, under its time as kubelet does, so that
// readers find the files in order.
func (l *logFile) rotate() error {
	aside := l.path + "." + l.now().UTC().Format("20060102-150405.000000000")
	if err := os.Rename(l.path, aside); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("log: %w", err)
	}
	_ = l.file.Close()
	l.file = nil
	if err := l.open(); err != nil {
		return err
	}
	old, err := filepath.Glob(l.path + ".*")
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	slices.Sort(old)
	for len(old) > maxLogFiles-1 {
		_ = os.Remove(old[0])
		old = old[1:]
	}
	return nil
}

// close writes lines that never ended, and closes the file.
func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	l.out = l.out[:0]
	stamp := l.now().UTC().Format(time.RFC3339Nano)
	for stream, held := range l.partial {
		if len(held) > 0 {
			l.line(stamp, stream, 'P', held)
		}
	}
	_ = l.flush()
	_ = l.file.Close()
	l.file = nil
}
