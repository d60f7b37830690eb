// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // teaches the managers device rules
	deviceconfig "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"
)

// hierarchies are the cgroup file systems of this machine.
type hierarchies struct {
	unified bool
	roots   map[string]string // v1 controller: mount point
	swap    bool              // swap can be bounded
	mu      sync.RWMutex      // held for writing while empty parents are removed
}

// findHierarchies looks once. On v1 and hybrid machines only the controllers
// that bound, measure or stop a container are used, and systemd's, so that
// stopping our unit does not kill containers: each costs a directory and a
// write for each container.
func findHierarchies() (*hierarchies, error) {
	h := &hierarchies{unified: cgroups.IsCgroup2UnifiedMode(), roots: map[string]string{}}
	if h.unified {
		_, err := os.Stat(filepath.Join(fs2.UnifiedMountpoint, "memory.swap.max"))
		h.swap = err == nil || !errors.Is(err, os.ErrNotExist)
		return h, nil
	}
	for _, name := range []string{"devices", "memory", "cpu", "cpuacct", "pids", "freezer", "name=systemd"} {
		root, err := cgroups.FindCgroupMountpoint("", name)
		if err == nil {
			h.roots[name] = root
		} else if !cgroups.IsNotFound(err) || name == "devices" {
			return nil, fmt.Errorf("find cgroup controller %s: %w", name, err)
		}
	}
	_, err := os.Stat(filepath.Join(h.roots["memory"], "memory.memsw.limit_in_bytes"))
	h.swap = err == nil
	return h, nil
}

// open returns the manager of one container's cgroup.
func (h *hierarchies) open(parent, id string, r *cgroups.Resources) (cgroups.Manager, error) {
	path := filepath.Join("/", parent, id)
	c := &cgroups.Cgroup{Path: path, Resources: r}
	if h.unified {
		return fs2.NewManager(c, filepath.Join(fs2.UnifiedMountpoint, path))
	}
	paths := map[string]string{}
	for name, root := range h.roots {
		paths[name] = filepath.Join(root, path)
	}
	return fs.NewManager(c, paths)
}

// create makes the directories of a cgroup, with nobody in it.
func (h *hierarchies) create(m cgroups.Manager) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// limit sets bounds. On v1 each controller is set by itself: the manager would
// go through all that there are, and some of those keep notes in variables
// that all containers share.
func (h *hierarchies) limit(m cgroups.Manager, r *cgroups.Resources) error {
	if h.unified {
		return m.Set(r)
	}
	for _, c := range []interface {
		Name() string
		Set(path string, r *cgroups.Resources) error
	}{&fs.DevicesGroup{}, &fs.MemoryGroup{}, &fs.PidsGroup{}, &fs.CpuGroup{}} {
		if path := m.Path(c.Name()); path != "" {
			if err := c.Set(path, r); err != nil {
				return fmt.Errorf("cgroup %s: %w", c.Name(), err)
			}
		}
	}
	return nil
}

// destroy removes a cgroup, and those above it that are empty now.
func (h *hierarchies) destroy(m cgroups.Manager) error {
	paths := maps.Clone(m.GetPaths())
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, dir := range paths {
		root := h.roots[name]
		if h.unified {
			root = fs2.UnifiedMountpoint
		}
		for dir = filepath.Dir(dir); len(dir) > len(root); dir = filepath.Dir(dir) {
			if unix.Rmdir(dir) != nil {
				break // others are in it
			}
		}
	}
	return nil
}

// tasks are the files through which a thread enters a v1 cgroup.
func tasks(m cgroups.Manager) []string {
	var out []string
	for name, dir := range m.GetPaths() {
		if name != "" {
			out = append(out, filepath.Join(dir, "tasks"))
		}
	}
	return out
}

// visible are the v1 cgroups that a container sees under /sys/fs/cgroup:
// those from which programs learn their limits.
func visible(m cgroups.Manager) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"memory", "cpu", "cpuacct", "pids"} {
		if dir := m.Path(name); dir != "" {
			out[name] = dir
		}
	}
	return out
}

// cpu are the processor's bounds. They hold from the start of the program on:
// a container with a tenth of a processor would else spend its share of the
// first periods on being set up.
func (h *hierarchies) cpu(s *Spec) *cgroups.Resources {
	r := &cgroups.Resources{
		CpuShares:   s.Resources.CPUShares,
		CpuQuota:    s.Resources.CPUQuota,
		CpuPeriod:   s.Resources.CPUPeriod,
		SkipDevices: true,
	}
	if r.CpuQuota != 0 && r.CpuPeriod == 0 {
		r.CpuPeriod = 100_000
	}
	if h.unified {
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CpuShares)
	}
	return r
}

// resources are all other bounds.
func (h *hierarchies) resources(s *Spec) *cgroups.Resources {
	r := &cgroups.Resources{Memory: s.Resources.Memory}
	if r.Memory > 0 && h.swap {
		r.MemorySwap = r.Memory
	}
	if s.Resources.Pids > 0 {
		r.PidsLimit = &s.Resources.Pids
	}
	return r
}

// deviceRules lets a container use the devices every program expects, make
// any node, and use those of the spec.
func deviceRules(s *Spec, extra []node) []*deviceconfig.Rule {
	if s.Privileged {
		return []*deviceconfig.Rule{{Type: deviceconfig.WildcardDevice, Major: deviceconfig.Wildcard, Minor: deviceconfig.Wildcard, Permissions: "rwm", Allow: true}}
	}
	rules := []*deviceconfig.Rule{{Type: deviceconfig.WildcardDevice, Major: deviceconfig.Wildcard, Minor: deviceconfig.Wildcard, Permissions: "rwm"}}
	allow := func(kind deviceconfig.Type, major, minor int64, permissions string) {
		rules = append(rules, &deviceconfig.Rule{Type: kind, Major: major, Minor: minor, Permissions: deviceconfig.Permissions(permissions), Allow: true})
	}
	const any = deviceconfig.Wildcard
	allow(deviceconfig.CharDevice, any, any, "m")
	allow(deviceconfig.BlockDevice, any, any, "m")
	for _, n := range defaultNodes() {
		allow(deviceconfig.CharDevice, int64(unix.Major(n.Dev)), int64(unix.Minor(n.Dev)), "rwm")
	}
	allow(deviceconfig.CharDevice, 5, 1, "rwm")     // console
	allow(deviceconfig.CharDevice, 5, 2, "rwm")     // ptmx
	allow(deviceconfig.CharDevice, 136, any, "rwm") // pts
	for i, n := range extra {
		kind, permissions := deviceconfig.CharDevice, "rwm"
		if n.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = deviceconfig.BlockDevice
		}
		if i < len(s.Devices) && s.Devices[i].Permissions != "" {
			permissions = s.Devices[i].Permissions
		}
		allow(kind, int64(unix.Major(n.Dev)), int64(unix.Minor(n.Dev)), permissions)
	}
	return rules
}

// pids are the processes in a cgroup and below it.
func pids(m cgroups.Manager) ([]int, error) {
	out, err := m.GetAllPids()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return out, err
}

// killAll kills every process of a cgroup, also one that forks faster than
// its PIDs can be read.
func (h *hierarchies) killAll(m cgroups.Manager) error {
	if h.unified {
		err := os.WriteFile(filepath.Join(m.Path(""), "cgroup.kill"), []byte("1"), 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if found, err := pids(m); err != nil || len(found) == 0 {
		return err
	}
	_ = m.Freeze(cgroups.Frozen) // a frozen process cannot fork
	found, err := pids(m)
	for _, pid := range found {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return errors.Join(err, m.Freeze(cgroups.Thawed))
}

// hurry lets the processes of a cgroup have the processor, and returns what takes
// it from them again. Dying takes time on it, and thousands of processes that may
// have next to none of it would take hours to die, and slow down others meanwhile.
// The cgroup above is the pod's, which bounds its containers in the same way.
func (h *hierarchies) hurry(m cgroups.Manager) (restore func()) {
	dir, weight, full, quota, unbounded := m.Path("cpu"), "cpu.shares", "10240", "cpu.cfs_quota_us", "-1"
	if h.unified {
		dir, weight, full, quota, unbounded = m.Path(""), "cpu.weight", "1000", "cpu.max", "max"
	}
	var undo []func()
	set := func(path, value string) {
		old, err := os.ReadFile(path)
		if err != nil || os.WriteFile(path, []byte(value), 0) != nil {
			return
		}
		undo = append(undo, func() { _ = os.WriteFile(path, bytes.TrimSpace(old), 0) })
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		set(filepath.Join(d, quota), unbounded)
		set(filepath.Join(d, weight), full)
	}
	return func() {
		for _, back := range slices.Backward(undo) {
			back()
		}
	}
}

// oomKills is how many processes of a cgroup the kernel killed for memory.
func oomKills(m cgroups.Manager) uint64 {
	n, _ := m.OOMKillCount()
	return n
}

// usage reads what a container uses: three or four small files.
func (h *hierarchies) usage(m cgroups.Manager, now time.Time) (Usage, error) {
	u := Usage{At: now}
	var stat map[string]uint64
	var err error
	if h.unified {
		dir := m.Path("")
		cpu, cpuErr := keyValues(filepath.Join(dir, "cpu.stat"))
		u.CPUNanos = cpu["usage_usec"] * 1000
		u.MemoryUsage = number(filepath.Join(dir, "memory.current"))
		u.Pids = number(filepath.Join(dir, "pids.current"))
		if stat, err = keyValues(filepath.Join(dir, "memory.stat")); cpuErr != nil {
			err = cpuErr
		}
		u.MemoryRSS = stat["anon"]
		u.MemoryWorkingSet = less(u.MemoryUsage, stat["inactive_file"])
	} else {
		u.CPUNanos = number(filepath.Join(m.Path("cpuacct"), "cpuacct.usage"))
		u.MemoryUsage = number(filepath.Join(m.Path("memory"), "memory.usage_in_bytes"))
		u.Pids = number(filepath.Join(m.Path("pids"), "pids.current"))
		stat, err = keyValues(filepath.Join(m.Path("memory"), "memory.stat"))
		u.MemoryRSS = stat["total_rss"]
		u.MemoryWorkingSet = less(u.MemoryUsage, stat["total_inactive_file"])
		stat["pgfault"], stat["pgmajfault"] = stat["total_pgfault"], stat["total_pgmajfault"]
	}
	u.MemoryPageFaults, u.MemoryMajorFault = stat["pgfault"], stat["pgmajfault"]
	if err != nil {
		return u, fmt.Errorf("read usage: %w", err)
	}
	return u, nil
}

func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func number(file string) uint64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}

func keyValues(file string) (map[string]uint64, error) {
	out := map[string]uint64{}
	text, err := os.ReadFile(file)
	if err != nil {
		return out, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out, nil
}

// startTime is when a process started, in ticks since the machine did. With
// it a PID names one process for good.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is a name in parentheses, which may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return 0, syscall.ESRCH
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, syscall.ESRCH
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
