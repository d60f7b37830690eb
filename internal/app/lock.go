// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// errHeld begins what is said when another supervisor, or "sonagi down", works there.
var errHeld = errors.New("sonagi already runs")

// lock makes this the only supervisor of the data directory, until it ends: the
// kernel releases the lock of a process that is killed.
func lock(s Settings) (*os.File, error) {
	if err := os.MkdirAll(s.Path("run"), 0o711); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(s.lockFile(), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("%w with the data directory %s (pid %d). Stop it with \"sonagi down\", or choose another directory with --data-dir", errHeld, s.DataDir, holder(s))
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", s.lockFile(), err)
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return f, err
}

func (s Settings) lockFile() string { return s.Path("run", "lock") }

// holder is the pid of the supervisor that wrote the lock file last, or 0.
func holder(s Settings) int {
	text, err := os.ReadFile(s.lockFile())
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// running is the pid of the supervisor that runs now, or 0.
func running(s Settings) int {
	f, err := os.Open(s.lockFile())
	if err != nil {
		return 0
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0
	}
	return holder(s)
}

// gone waits until the process pid has ended and its files are closed, ports
// included: it is no child of ours, so its pidfd is polled. That a parent has
// yet to fetch its exit code is no matter.
func gone(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil // it is no more, or is another's thread
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	const slice = 100 // milliseconds until ctx is looked at again
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, slice)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("process %d: %w", pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("process %d still runs: %w", pid, context.Cause(ctx))
		}
	}
}
