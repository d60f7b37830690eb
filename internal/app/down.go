// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io"
	"os"
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
	if pid := running(s); pid > 0 {
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
	if _, err := os.Stat(s.DataDir); os.IsNotExist(err) {
		fmt.Fprintln(out, "Nothing runs, and nothing is left.")
		return nil
	}
	held, err := lock(s)
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
