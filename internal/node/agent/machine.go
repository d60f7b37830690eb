// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/internal/node/pod"
)

// machine is what this machine has.
type machine struct {
	hostname string
	memory   int64 // bytes
	info     corev1.NodeSystemInfo
	capacity corev1.ResourceList
	free     corev1.ResourceList // for pods
	told     chan struct{}       // the API knows the node
	once     sync.Once
}

// reservedMemory is kept from pods: below it the machine is short of memory.
const reservedMemory = 100 << 20

func readMachine(o Options) (*machine, error) {
	m := &machine{told: make(chan struct{})}
	var err error
	if m.hostname, err = os.Hostname(); err != nil {
		return nil, err
	}
	mem, err := memInfo()
	if err != nil {
		return nil, err
	}
	m.memory = mem["MemTotal"]
	if err := os.MkdirAll(o.DataDir, 0o755); err != nil {
		return nil, err
	}
	disk, err := readDisk(o.DataDir)
	if err != nil {
		return nil, err
	}
	m.capacity = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(m.memory, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(disk.size, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(o.MaxPods), resource.DecimalSI),
	}
	hugePages(m.capacity)
	m.free = m.capacity.DeepCopy()
	m.free[corev1.ResourceMemory] = *resource.NewQuantity(max(0, m.memory-reservedMemory), resource.BinarySI)
	m.free[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(disk.size*9/10, resource.BinarySI)
	m.info = systemInfo(o)
	return m, nil
}

func (m *machine) allocatable() corev1.ResourceList { return m.free }

// isTold notes that the API knows the node.
func (m *machine) isTold() { m.once.Do(func() { close(m.told) }) }

func systemInfo(o Options) corev1.NodeSystemInfo {
	version := o.Version
	if version == "" {
		version = "0.0.0"
	}
	info := corev1.NodeSystemInfo{
		MachineID:               firstLine("/etc/machine-id"),
		SystemUUID:              firstLine("/sys/class/dmi/id/product_uuid"),
		BootID:                  firstLine("/proc/sys/kernel/random/boot_id"),
		OSImage:                 osImage(),
		ContainerRuntimeVersion: "sonagi://" + strings.TrimPrefix(version, "v"),
		KubeletVersion:          kubernetesVersion,
		OperatingSystem:         runtime.GOOS,
		Architecture:            runtime.GOARCH,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		info.KernelVersion = string(bytes.TrimRight(u.Release[:], "\x00"))
	}
	return info
}

func firstLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

func osImage() string {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return "Linux"
}

// hugePages adds what the machine has of each size of huge pages.
func hugePages(to corev1.ResourceList) {
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, dir := range dirs {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(firstLine(filepath.Join(dir, "nr_hugepages")), 10, 64)
		size := resource.NewQuantity(kb<<10, resource.BinarySI)
		to[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size.String())] = *resource.NewQuantity(n*kb<<10, resource.BinarySI)
	}
}

// memInfo is /proc/meminfo in bytes.
func memInfo() (map[string]int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, ":")
		words := strings.Fields(rest)
		if !ok || len(words) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			out[name] = n << 10
		}
	}
	if out["MemTotal"] == 0 {
		return nil, fmt.Errorf("no MemTotal in /proc/meminfo")
	}
	return out, nil
}

// disk is the state of a file system.
type disk struct {
	size, free         int64
	inodes, inodesFree int64
}

func readDisk(path string) (disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return disk{
		size: int64(st.Blocks) * st.Bsize, free: int64(st.Bavail) * st.Bsize,
		inodes: int64(st.Files), inodesFree: int64(st.Ffree),
	}, nil
}

// processes is how many there are and how many there may be.
func processes() (running, most int64) {
	most, _ = strconv.ParseInt(firstLine("/proc/sys/kernel/pid_max"), 10, 64)
	if n, err := strconv.ParseInt(firstLine("/proc/sys/kernel/threads-max"), 10, 64); err == nil {
		most = min(most, n)
	}
	_, counts, _ := strings.Cut(firstLine("/proc/loadavg"), "/")
	words := strings.Fields(counts)
	if len(words) > 0 {
		running, _ = strconv.ParseInt(words[0], 10, 64)
	}
	return running, most
}

// cgroupRoot is below which control group pods have theirs.
const cgroupRoot = "/sonagi"

func cgroupParent(uid types.UID) string { return cgroupRoot + "/pod" + string(uid) }

// cgroupMounts lists where control groups are mounted, by controller: one place
// with v2, one for each controller with v1, both with a hybrid of the two.
func cgroupMounts() (map[string]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 4 {
			continue
		}
		switch words[2] {
		case "cgroup2":
			out[unified] = words[1]
		case "cgroup":
			for name := range strings.SplitSeq(words[3], ",") {
				if name != "rw" && name != "relatime" && !strings.HasPrefix(name, "no") {
					out[name] = words[1]
				}
			}
		}
	}
	return out, nil
}

// unified stands for all controllers of v2.
const unified = "unified"

// limitPod bounds what all containers of a pod use together. Their control
// groups are in the pod's, which exists once one of them does.
func limitPod(uid types.UID, g pod.Cgroup) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	set := func(controller, file, value string) {
		if dir, ok := mounts[controller]; ok {
			e := os.WriteFile(filepath.Join(dir, cgroupParent(uid), file), []byte(value), 0)
			if e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, fmt.Errorf("limiting pod: %w", e))
			}
		}
	}
	if _, v1 := mounts["cpu"]; v1 {
		set("cpu", "cpu.shares", strconv.FormatUint(g.CPUShares, 10))
		if g.CPUQuota > 0 {
			set("cpu", "cpu.cfs_quota_us", strconv.FormatInt(g.CPUQuota, 10))
		}
		if g.Memory > 0 {
			set("memory", "memory.limit_in_bytes", strconv.FormatInt(g.Memory, 10))
		}
		return err
	}
	// Shares of 2 to 262,144 become weights of 1 to 10,000.
	set(unified, "cpu.weight", strconv.FormatUint(1+(g.CPUShares-2)*9999/262142, 10))
	if g.CPUQuota > 0 {
		set(unified, "cpu.max", fmt.Sprintf("%d %d", g.CPUQuota, g.CPUPeriod))
	}
	if g.Memory > 0 {
		set(unified, "memory.max", strconv.FormatInt(g.Memory, 10))
	}
	return err
}

// removeCgroup removes the control groups of a pod, which are empty by now.
func removeCgroup(uid types.UID) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		err := unix.Rmdir(filepath.Join(m, cgroupParent(uid)))
		if err != nil && err != unix.ENOENT {
			return fmt.Errorf("removing control group: %w", err)
		}
	}
	return nil
}
