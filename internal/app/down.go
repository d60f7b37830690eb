// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"
)

// downLimit bounds an orderly end: the longest grace of the children and some more.
const downLimit = 90 * time.Second

// Down ends the platform that runs with these settings, in order, and then
// removes whatever a killed one left. With purge the data goes too.
func Down(ctx context.Context, s Settings, purge bool, out io.Writer) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("sonagi runs as root; run \"sonagi down\" with sudo")
	}
	if pid := running(s); pid > 0 && isSupervisor(pid) {
		fmt.Fprintf(out, "Stopping (pid %d) …\n", pid)
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop pid %d: %w", pid, err)
		}
		ctx, cancel := context.WithTimeout(ctx, downLimit)
		defer cancel()
		if err := gone(ctx, pid); err != nil {
			return err
		}
	}
	held, err := lockSoon(ctx, s)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(out, "Nothing runs, and nothing is left.")
		return nil
	}
	if err != nil {
		return err
	}
	defer held.Close()
	if err := endOrphans(ctx, s); err != nil {
		return err
	}
	if err := cleanUp(ctx, s); err != nil {
		return err
	}
	if !purge {
		fmt.Fprintf(out, "Stopped. Objects and images are kept in %s.\n", s.DataDir)
		return nil
	}
	if err := os.RemoveAll(s.DataDir); err != nil {
		return fmt.Errorf("purge: %w", err)
	}
	fmt.Fprintf(out, "Stopped, and %s removed.\n", s.DataDir)
	return nil
}

// isSupervisor says that the holder of the lock is one to stop, and not another "sonagi down".
func isSupervisor(pid int) bool {
	cmdline, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && containsArgs(cmdline, "up")
}

// lockSoon locks a data directory that exists. It waits for another "sonagi down"
// to be done, which no event tells of.
func lockSoon(ctx context.Context, s Settings) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, downLimit)
	defer cancel()
	for {
		if _, err := os.Stat(s.DataDir); err != nil {
			return nil, err
		}
		held, err := lock(s)
		if !errors.Is(err, errHeld) {
			return held, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
