// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/container/small"
	"github.com/sonagi/sonagi/internal/node/network"
)

// shutdownLimit bounds the killing of all containers.
const shutdownLimit = 30 * time.Second

// cleanUp removes what containers need of this machine: the containers and their
// runtime, namespaces, links, rules, mounts and cgroups. It looks for what is
// there instead of remembering what was made, so it can also be run after a crash.
func cleanUp(ctx context.Context, s Settings) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	return errors.Join(
		endContainers(ctx, s),
		network.Purge(s.network(slog.New(slog.DiscardHandler))),
		unmountBelow(s.DataDir),
		removeCgroups(),
	)
}

// runtimeOptions say where the runtime keeps and answers.
func (s Settings) runtimeOptions() container.Options {
	return container.Options{Dir: s.Path("containers"), Socket: s.Path("run", "runtime.sock"), Binary: small.Binary()}
}

// endContainers needs a runtime: one that was killed left containers, which a new one adopts.
func endContainers(ctx context.Context, s Settings) error {
	o := s.runtimeOptions()
	if _, err := os.Stat(o.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	runtime, err := container.Launch(ctx, o)
	if err != nil {
		return fmt.Errorf("end containers: %w", err)
	}
	defer runtime.Close()
	if err := runtime.Shutdown(ctx); err != nil {
		return fmt.Errorf("end containers: %w", err)
	}
	return nil
}

// unmountBelow unmounts everything below dir, the latest mount first.
func unmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil // it does not exist, so nothing is mounted below it
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	defer f.Close()
	var at []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) > 4 && strings.HasPrefix(w[4], dir+"/") {
			at = append(at, unescape(w[4]))
		}
	}
	var errs []error
	for _, path := range slices.Backward(at) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// unescape undoes the octal escapes of mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// cgroupRoot is the cgroup below which the containers' cgroups are, in every hierarchy.
const cgroupRoot = "sonagi"

// removeCgroups removes the empty cgroups that pods leave; one that is not empty
// belongs to another platform on this machine.
func removeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroupRoot)
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup/"+cgroupRoot) {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			_ = unix.Rmdir(dir)
		}
	}
	return nil
}
