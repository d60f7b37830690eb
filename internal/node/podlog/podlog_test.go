// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

const (
	l1 = "2026-01-02T03:04:01.5Z stdout F one\n"
	l2 = "2026-01-02T03:04:02Z stderr F two\n"
	l3 = "2026-01-02T03:04:03Z stdout P thr\n2026-01-02T03:04:03.1Z stdout F ee\n"
	l4 = "2026-01-02T03:04:04Z stdout F four\n"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path+".20260102-030400", l1)
	write(t, path+".20260102-030402", l2)
	write(t, path, l3+l4)
	for name, tt := range map[string]struct {
		o    Options
		want string
	}{
		"all":        {Options{Tail: -1}, "one\ntwo\nthree\nfour\n"},
		"tail 0":     {Options{Tail: 0}, ""},
		"tail 1":     {Options{Tail: 1}, "four\n"},
		"tail 3":     {Options{Tail: 3}, "three\nfour\n"},
		"tail 4":     {Options{Tail: 4}, "two\nthree\nfour\n"},
		"tail 100":   {Options{Tail: 100}, "one\ntwo\nthree\nfour\n"},
		"limit":      {Options{Tail: -1, LimitBytes: 6}, "one\ntw"},
		"since":      {Options{Tail: -1, Since: time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC)}, "three\nfour\n"},
		"timestamps": {Options{Tail: 2, Timestamps: true}, "2026-01-02T03:04:03.1Z ee\n2026-01-02T03:04:04Z four\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Read(t.Context(), path, tt.o, &b, &b); err != nil {
				t.Fatal(err)
			}
			if got := b.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	var out bytes.Buffer
	if err := Read(t.Context(), path, Options{Tail: -1}, nil, &out); err != nil || out.String() != "two\n" {
		t.Errorf("stderr = %q, %v", out.String(), err)
	}
}

func TestFollowAcrossRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, l1)
	done := make(chan struct{})
	pr, pw := io.Pipe()
	result := make(chan error, 1)
	go func() {
		result <- Read(t.Context(), path, Options{Tail: -1, Follow: true, Done: done}, pw, pw)
		pw.Close()
	}()
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(pr, buf); err != nil || string(buf) != want {
			t.Fatalf("read %q, %v; want %q", buf, err, want)
		}
	}
	expect("one\n")
	write(t, path, l2[:20])
	write(t, path, l2[20:])
	expect("two\n")
	reopen := func() error { write(t, path, ""); return nil }
	if ok, err := Rotate(path, 10, 5, time.Now(), reopen); !ok || err != nil {
		t.Fatal(ok, err)
	}
	write(t, path, l3)
	expect("three\n")
	write(t, path, l4)
	close(done)
	rest, err := io.ReadAll(pr)
	if err != nil || string(rest) != "four\n" {
		t.Errorf("rest = %q, %v", rest, err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, l1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var b bytes.Buffer
	if err := Read(ctx, path, Options{Tail: -1, Follow: true}, &b, nil); err != nil || b.String() != "one\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestRotateKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 6 {
		write(t, path, strings.Repeat("x", 100))
		if ok, err := Rotate(path, 100, 3, now.Add(time.Duration(i)*time.Second), func() error { return nil }); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if got := len(Rotated(path)); got != 2 {
		t.Errorf("%d old files, want 2", got)
	}
	write(t, path, "y")
	if ok, err := Rotate(path, 100, 3, now, nil); ok || err != nil {
		t.Error("a small file was rotated", err)
	}
	write(t, path, strings.Repeat("z", 100))
	if _, err := Rotate(path, 100, 3, now.Add(time.Hour), func() error { return fmt.Errorf("no") }); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("a log whose writer could not reopen it was not put back:", err)
	}
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, l1+l2+l3)
	if got, err := LastLines(path, 80, 5); err != nil || got != "hree\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(l1))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) { parse(b) })
}
