// SPDX-License-Identifier: Apache-2.0

// Package supervise keeps child processes running.
//
// Law: a child that dies after it was once ready is started again, at once the
// first time and with growing pauses when it keeps dying; a child that dies
// before it was ever ready ends everything with the child's own last word,
// because nobody is helped by a start that fails forever. A child learns
// through its lifeline (file descriptor 3) when the supervisor is gone, and
// leaves then without tidying up, so that the next supervisor can adopt what
// it left.
package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// pauses before a restart: none for a first crash, since a request may wait.
const (
	firstPause = 200 * time.Millisecond
	longPause  = 5 * time.Second
	calmAfter  = 10 * time.Second // a child that lived this long starts a new count
)

// A Child is one process to keep running.
type Child struct {
	Name  string
	Args  []string
	Files []*os.File    // inherited as file descriptors 4 and up
	Log   *os.File      // standard output and error
	Grace time.Duration // from SIGTERM to SIGKILL at the end
}

// A Report is what a child says of itself on its lifeline, one JSON value a line.
type Report struct {
	Task     string        `json:"task,omitempty"`     // a part that became ready, or
	Starting bool          `json:"starting,omitempty"` // is being started
	Took     time.Duration `json:"took,omitempty"`     // nanoseconds until it was ready
	Ready    bool          `json:"ready,omitempty"`    // all of the child is ready
	Error    string        `json:"error,omitempty"`    // why it is about to end
}

// An Event is a report, or a change that the supervisor saw.
type Event struct {
	Child string
	Pid   int
	Report
	Exited bool // Error says how
	At     time.Time
}

// Run starts exe once per child and keeps each running until ctx ends; it then
// ends them from last to first. observe is called from one goroutine at a time.
func Run(ctx context.Context, exe string, children []Child, observe func(Event)) error {
	var mu sync.Mutex
	tell := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		observe(e)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var stops []func()
	for _, c := range children {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := keep(own, exe, c, tell); err != nil {
				fail(err)
			}
		}()
		stops = append(stops, func() { cancel(); <-done })
	}
	<-ctx.Done()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// keep runs one child again and again. It returns nil when ctx ended.
func keep(ctx context.Context, exe string, c Child, tell func(Event)) error {
	var wasReady bool
	var pause time.Duration
	for {
		began := time.Now()
		ready, err := once(ctx, exe, c, tell)
		if ctx.Err() != nil {
			return nil
		}
		wasReady = wasReady || ready
		if !wasReady {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		if time.Since(began) > calmAfter {
			pause = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(max(2*pause, firstPause), longPause)
	}
}

// once runs the child until it ends, and says whether it became ready.
func once(ctx context.Context, exe string, c Child, tell func(Event)) (ready bool, err error) {
	ours, theirs, err := lifeline()
	if err != nil {
		return false, err
	}
	defer ours.Close()
	cmd := exec.CommandContext(ctx, exe, c.Args...)
	cmd.Stdout, cmd.Stderr = c.Log, c.Log
	cmd.ExtraFiles = append([]*os.File{theirs}, c.Files...)
	// A process group of its own: Ctrl-C is for the supervisor, which ends its children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = c.Grace
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return false, err
	}
	pid := cmd.Process.Pid
	tell(Event{Child: c.Name, Pid: pid, At: time.Now()})

	last := make(chan Report, 1)
	go func() {
		last <- listen(ours, func(r Report) { tell(Event{Child: c.Name, Pid: pid, Report: r, At: time.Now()}) })
	}()
	err = cmd.Wait()
	final := <-last
	if final.Error != "" {
		err = errors.New(final.Error)
	} else if err == nil {
		err = errors.New("ended without being told to")
	}
	tell(Event{Child: c.Name, Pid: pid, Exited: true, Report: Report{Error: err.Error()}, At: time.Now()})
	return final.Ready, err
}

// listen reads reports until the child is gone, and returns whether it was
// ready and its last error.
func listen(r io.Reader, each func(Report)) (sum Report) {
	in := json.NewDecoder(r)
	for {
		var rep Report
		if in.Decode(&rep) != nil {
			return sum
		}
		sum.Ready = sum.Ready || rep.Ready
		if rep.Error != "" {
			sum.Error = rep.Error
		}
		each(rep)
	}
}

// lifeline is a socket pair: the child writes reports and sees the end of file
// when the supervisor is gone.
func lifeline() (ours, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("lifeline: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "lifeline"), os.NewFile(uintptr(fds[1]), "lifeline"), nil
}
