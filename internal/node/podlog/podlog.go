// SPDX-License-Identifier: Apache-2.0

// Package podlog reads and rotates the logs of containers.
//
// A log is one file that grows, and the files it was before it was rotated:
// PATH.<time>, oldest first. Each line is a time, a stream, F for a whole line
// or P for a piece of one, and the text.
package podlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say which part of a log to read.
type Options struct {
	Follow     bool
	Done       <-chan struct{} // closed when nothing more will be written; nil: only the context ends following
	Timestamps bool
	Tail       int64 // lines from the end; negative: all
	Since      time.Time
	LimitBytes int64 // zero: no limit
}

// maxLine bounds a line; runtimes cut longer ones into pieces well before.
const maxLine = 1 << 20

// Read copies a log to the two writers. A nil writer's stream is left out. A
// writer that has a method Flush is flushed when there is nothing more to read
// for the moment.
func Read(ctx context.Context, path string, o Options, stdout, stderr io.Writer) error {
	r := &reader{path: path, o: o, out: &sink{o: o, stdout: stdout, stderr: stderr, fresh: map[string]bool{"stdout": true, "stderr": true}}}
	if o.Follow {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watching log: %w", err)
		}
		defer w.Close()
		if err := w.Add(filepath.Dir(path)); err != nil {
			return fmt.Errorf("watching log: %w", err)
		}
		r.watch = w
	}
	err := r.all(ctx)
	r.out.flush()
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// errEnough ends reading at the byte limit.
var errEnough = errors.New("limit reached")

type reader struct {
	path  string
	o     Options
	out   *sink
	watch *fsnotify.Watcher
}

func (r *reader) all(ctx context.Context) error {
	files := append(Rotated(r.path), r.path)
	first, offset, err := tail(files, r.o.Tail)
	if err != nil {
		return err
	}
	for i := first; i < len(files); i++ {
		err := r.file(ctx, files[i], offset, i == len(files)-1)
		if errors.Is(err, fs.ErrNotExist) && i < len(files)-1 {
			err = nil // rotated away while we read
		}
		if err != nil {
			return err
		}
		offset = 0
	}
	return nil
}

// file copies one file from an offset; the last one is followed, and so are
// its successors.
func (r *reader) file(ctx context.Context, path string, offset int64, last bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	lines := newLines(f)
	ended := false
	for {
		if err := lines.drain(r.out); err != nil {
			return err
		}
		if !last || !r.o.Follow || ended {
			return lines.rest(r.out)
		}
		r.out.flush()
		next, err := r.successor(f)
		if err != nil {
			return err
		}
		if next != nil {
			if err := lines.drain(r.out); err != nil { // what was written between the last read and the rename
				next.Close()
				return err
			}
			f.Close()
			f = next
			lines = newLines(f)
			continue
		}
		if ended, err = r.wait(ctx); err != nil {
			return err
		}
	}
}

// successor opens the file that has taken the place of f, if one has.
func (r *reader) successor(f *os.File) (*os.File, error) {
	have, err := f.Stat()
	if err != nil {
		return nil, err
	}
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && os.SameFile(have, now) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return os.Open(r.path)
}

// wait blocks until there may be more to read; ended means that what is there
// now is the last of it.
func (r *reader) wait(ctx context.Context) (ended bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, errEnough
		case <-r.o.Done:
			return true, nil
		case err, ok := <-r.watch.Errors:
			if !ok {
				return true, nil
			}
			return false, fmt.Errorf("watching log: %w", err)
		case e, ok := <-r.watch.Events:
			if !ok {
				return true, nil
			}
			if e.Name == r.path {
				return false, nil
			}
		}
	}
}

// lines cuts a growing file into lines.
type lines struct {
	r    *bufio.Reader
	part []byte // the beginning of a line whose end is not written yet
}

func newLines(r io.Reader) *lines { return &lines{r: bufio.NewReaderSize(r, 64<<10)} }

func (l *lines) drain(out *sink) error {
	for {
		piece, err := l.r.ReadSlice('\n')
		if err == nil && len(l.part) == 0 {
			if err := out.line(piece); err != nil {
				return err
			}
			continue
		}
		l.part = append(l.part, piece...)
		if err == nil || len(l.part) > maxLine {
			if err := out.line(l.part); err != nil {
				return err
			}
			l.part = l.part[:0]
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

func (l *lines) rest(out *sink) error {
	if len(l.part) == 0 {
		return nil
	}
	return out.line(l.part)
}

// sink writes the text of lines.
type sink struct {
	o              Options
	stdout, stderr io.Writer
	fresh          map[string]bool // the next piece of that stream begins a line
	written        int64
}

func (s *sink) line(raw []byte) error {
	e, ok := parse(raw)
	if !ok || e.at.Before(s.o.Since) && !s.o.Since.IsZero() {
		return nil
	}
	w := s.stdout
	if e.stream == "stderr" {
		w = s.stderr
	}
	if w == nil {
		return nil
	}
	text := e.text
	if s.o.Timestamps && s.fresh[e.stream] {
		text = append([]byte(e.stamp+" "), text...)
	}
	s.fresh[e.stream] = !e.partial
	if s.o.LimitBytes > 0 && s.written+int64(len(text)) >= s.o.LimitBytes {
		text = text[:s.o.LimitBytes-s.written]
		if _, err := w.Write(text); err != nil {
			return err
		}
		return errEnough
	}
	n, err := w.Write(text)
	s.written += int64(n)
	return err
}

func (s *sink) flush() {
	for _, w := range []io.Writer{s.stdout, s.stderr} {
		if f, ok := w.(interface{ Flush() }); ok {
			f.Flush()
		}
	}
}

type entry struct {
	stamp   string
	at      time.Time
	stream  string
	partial bool
	text    []byte // with its line end, if the line ends here
}

// parse reads one line of a log. A line cut off by a crash is kept as it is.
func parse(raw []byte) (entry, bool) {
	parts := bytes.SplitN(raw, []byte(" "), 4)
	if len(parts) < 4 {
		return entry{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(parts[0]))
	if err != nil {
		return entry{}, false
	}
	tag, _, _ := bytes.Cut(parts[2], []byte(":"))
	e := entry{stamp: string(parts[0]), at: at, stream: string(parts[1]), partial: string(tag) == "P", text: parts[3]}
	if e.partial {
		e.text = bytes.TrimSuffix(e.text, []byte("\n"))
	}
	return e, e.stream == "stdout" || e.stream == "stderr"
}

// Rotated lists the older files of a log, oldest first.
func Rotated(path string) []string {
	found, _ := filepath.Glob(path + ".*")
	slices.Sort(found)
	return found
}

// tail finds where the last n lines of files begin: the file and the offset.
func tail(files []string, n int64) (file int, offset int64, err error) {
	if n < 0 {
		return 0, 0, nil
	}
	for i := len(files) - 1; i >= 0; i-- {
		at, found, err := tailOf(files[i], n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		if found >= n {
			return i, at, nil
		}
		n -= found
	}
	return 0, 0, nil
}

// tailOf finds the offset of the n-th line from the end of a file, or 0 and
// how many lines there are.
func tailOf(path string, n int64) (offset, found int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, 0, err
	}
	buf := make([]byte, 32<<10)
	for at := end; at > 0; {
		size := min(at, int64(len(buf)))
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if found++; found == n {
				return at + i + 1, found, nil
			}
		}
	}
	if end > 0 {
		found++ // the first line has no line end before it
	}
	return 0, found, nil
}

// LastLines is the text of the last lines of a log, bounded in bytes.
func LastLines(path string, n int64, maxBytes int) (string, error) {
	var b strings.Builder
	err := Read(context.Background(), path, Options{Tail: n}, &b, &b)
	text := b.String()
	if len(text) > maxBytes {
		text = text[len(text)-maxBytes:]
	}
	return text, err
}

// Remove removes a log and its older files. What is not there is no error.
func Remove(path string) error {
	var errs []error
	for _, file := range append(Rotated(path), path) {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Rotate puts a log that has reached size aside and keeps at most keep files of
// it, itself included. reopen makes the writer begin the new file.
func Rotate(path string, size int64, keep int, now time.Time, reopen func() error) (bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() < size {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	old := Rotated(path)
	for len(old) > max(0, keep-2) {
		if err := os.Remove(old[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		old = old[1:]
	}
	aside := path + "." + now.UTC().Format("20060102-150405.000000")
	if err := os.Rename(path, aside); err != nil {
		return false, err
	}
	if err := reopen(); err != nil {
		return false, errors.Join(fmt.Errorf("reopening log: %w", err), os.Rename(aside, path))
	}
	return true, nil
}
