// SPDX-License-Identifier: Apache-2.0

package container

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	deviceconfig "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// defaultShmSize is the size of /dev/shm that container runtimes agree on.
const defaultShmSize = 64 << 20

// check refuses what would be an obscure error later, or a path out of our
// own directories.
func (s *Spec) check() error {
	switch {
	case s.ID == "" || len(s.ID) > 128 || strings.Trim(s.ID, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != "" || s.ID[0] == '.':
		return fmt.Errorf("container id %q: want letters, digits, '-', '_' and '.'", s.ID)
	case s.CgroupParent != "" && filepath.Clean(s.CgroupParent) != s.CgroupParent || strings.Contains(s.CgroupParent, ".."):
		return fmt.Errorf("cgroup parent %q: want a clean path", s.CgroupParent)
	case s.Pause:
		return nil
	case !filepath.IsAbs(s.RootFS):
		return fmt.Errorf("root file system %q: want an absolute path", s.RootFS)
	case len(s.Args) == 0 || s.Args[0] == "":
		return &StartError{Reason: "StartError", Message: "no command specified"}
	case s.Cwd != "" && !filepath.IsAbs(s.Cwd):
		return &StartError{Reason: "StartError", Message: fmt.Sprintf("working directory %q: want an absolute path", s.Cwd)}
	}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) {
			return fmt.Errorf("mount %q: want an absolute path", m.Destination)
		}
	}
	return nil
}

// shared says that mounts made in the container are to appear on the host.
// Such a container gets no stage: its mount namespace is not cut off.
func (s *Spec) shared() bool {
	return slices.ContainsFunc(s.Mounts, func(m Mount) bool { return strings.HasSuffix(m.Propagation, "shared") })
}

// config is what libcontainer is to make of the spec.
func config(s *Spec, st *stage, caps []string, devices []node) (*configs.Config, error) {
	root, err := filepath.EvalSymlinks(s.RootFS)
	if err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	c := &configs.Config{
		Rootfs:          root,
		Readonlyfs:      s.ReadOnlyRoot,
		Namespaces:      namespaces(s),
		Capabilities:    &configs.Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
		Cgroups:         &cgroups.Cgroup{Resources: &cgroups.Resources{}},
		Sysctl:          s.Sysctls,
		NoNewPrivileges: s.NoNewPrivileges,
		NoNewKeyring:    true,
		RootPropagation: unix.MS_SLAVE | unix.MS_REC,
	}
	if s.UTSNS == "" {
		c.Hostname = s.Hostname
	}
	if s.shared() {
		c.RootPropagation = unix.MS_SHARED | unix.MS_REC
	}
	if !s.Privileged && !s.UnmaskedProc {
		c.MaskPaths, c.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	c.Mounts = append(baseMounts(s, st), userMounts(s)...)
	if st == nil {
		c.Devices = configDevices(devices)
	}
	return c, nil
}

func namespaces(s *Spec) configs.Namespaces {
	out := configs.Namespaces{{Type: configs.NEWNS}}
	for _, n := range []struct {
		kind configs.NamespaceType
		path string
	}{{configs.NEWNET, s.NetNS}, {configs.NEWIPC, s.IPCNS}, {configs.NEWUTS, s.UTSNS}, {configs.NEWPID, s.PIDNS}} {
		if n.path != HostNamespace {
			out = append(out, configs.Namespace{Type: n.kind, Path: n.path})
		}
	}
	return out
}

// maskedPaths are the kernel's secrets and switches under /proc and /sys, as
// Kubernetes masks them by default.
func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/interrupts", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func baseMounts(s *Spec, st *stage) []*configs.Mount {
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	readOnly := unix.MS_RDONLY
	if s.Privileged {
		readOnly = 0
	}
	out := []*configs.Mount{{Source: "proc", Destination: "/proc", Device: "proc", Flags: flags}}
	if s.NetNS == HostNamespace && !s.Privileged {
		out = append(out, &configs.Mount{Source: "/sys", Destination: "/sys", Device: "bind", Flags: unix.MS_BIND | unix.MS_REC | flags | readOnly})
	} else {
		out = append(out, &configs.Mount{Source: "sysfs", Destination: "/sys", Device: "sysfs", Flags: flags | readOnly})
	}
	if st != nil {
		return append(out,
			&configs.Mount{Source: st.dev(), Destination: "/dev", Device: "bind", Flags: unix.MS_BIND | unix.MS_REC},
			&configs.Mount{Source: st.cgroup(), Destination: "/sys/fs/cgroup", Device: "bind", Flags: unix.MS_BIND | unix.MS_REC | flags | readOnly})
	}
	return append(out,
		&configs.Mount{Source: "tmpfs", Destination: "/dev", Device: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=65536k"},
		&configs.Mount{Source: "devpts", Destination: "/dev/pts", Device: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		&configs.Mount{Source: "mqueue", Destination: "/dev/mqueue", Device: "mqueue", Flags: flags},
		&configs.Mount{Source: "shm", Destination: "/dev/shm", Device: "tmpfs", Flags: flags, Data: fmt.Sprintf("mode=1777,size=%d", s.shmSize())},
		&configs.Mount{Source: "cgroup", Destination: "/sys/fs/cgroup", Device: "cgroup", Flags: flags | readOnly})
}

func (s *Spec) shmSize() int64 {
	if s.ShmSize > 0 {
		return s.ShmSize
	}
	return defaultShmSize
}

// userMounts are the mounts of the spec, outer ones first.
func userMounts(s *Spec) []*configs.Mount {
	mounts := slices.Clone(s.Mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int {
		return cmp.Compare(strings.Count(filepath.Clean(a.Destination), "/"), strings.Count(filepath.Clean(b.Destination), "/"))
	})
	out := make([]*configs.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, mountConfig(m))
	}
	return out
}

func mountConfig(m Mount) *configs.Mount {
	c := &configs.Mount{Source: m.Source, Destination: filepath.Clean(m.Destination), Device: m.Type}
	if c.Device == "" || c.Device == "bind" || c.Device == "none" {
		c.Device, c.Flags = "bind", unix.MS_BIND|unix.MS_REC
		c.PropagationFlags = []int{unix.MS_PRIVATE | unix.MS_REC}
	}
	switch m.Propagation {
	case "rslave", "slave":
		c.PropagationFlags = []int{unix.MS_SLAVE | unix.MS_REC}
	case "rshared", "shared":
		c.PropagationFlags = []int{unix.MS_SHARED | unix.MS_REC}
	}
	flags := map[string]int{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "sync": unix.MS_SYNCHRONOUS,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
	}
	words := map[string]bool{"rw": true, "rbind": true, "defaults": true, "suid": true, "dev": true, "exec": true, "": true}
	var data []string
	for _, o := range m.Options {
		switch {
		case o == "bind":
			c.Flags &^= unix.MS_REC
		case flags[o] != 0:
			c.Flags |= flags[o]
		case !words[o]:
			data = append(data, o)
		}
	}
	c.Data = strings.Join(data, ",")
	return c
}

// defaultNodes are the device nodes every container has.
func defaultNodes() []node {
	out := []node{}
	for _, d := range []struct {
		path         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		out = append(out, node{Path: d.path, Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(d.major, d.minor)})
	}
	return out
}

// specNodes are the device nodes that the spec asks for, and for a privileged
// container all of the host's.
func specNodes(s *Spec) ([]node, error) {
	var out []node
	for _, d := range s.Devices {
		n, err := hostNode(d.HostPath)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		path := cmp.Or(d.Path, d.HostPath)
		var below bool
		if n.Path, below = strings.CutPrefix(filepath.Clean(path), "/dev/"); !below {
			return nil, fmt.Errorf("device %s: in a container it must be below /dev", path)
		}
		out = append(out, n)
	}
	if s.Privileged {
		out = append(out, hostNodes("/dev")...)
	}
	return out, nil
}

func hostNode(path string) (node, error) {
	info, err := os.Stat(path)
	if err != nil {
		return node{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if kind := st.Mode & unix.S_IFMT; !ok || kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return node{}, fmt.Errorf("not a device node")
	}
	return node{Mode: st.Mode, Dev: uint64(st.Rdev), UID: int(st.Uid), GID: int(st.Gid)}, nil
}

// hostNodes finds the device nodes below dir. Terminals and shared memory are
// a container's own.
func hostNodes(dir string) []node {
	own := []string{"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"}
	var out []node
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case slices.Contains(own, path):
		case e.IsDir():
			out = append(out, hostNodes(path)...)
		case e.Type()&os.ModeDevice != 0:
			if n, err := hostNode(path); err == nil && !slices.ContainsFunc(defaultNodes(), func(d node) bool { return "/dev/"+d.Path == path }) {
				n.Path = strings.TrimPrefix(path, "/dev/")
				out = append(out, n)
			}
		}
	}
	return out
}

// defaultCapabilities are those container runtimes agree a workload has.
func defaultCapabilities() []string {
	return strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE")
}

// availableCapabilities are those that the kernel knows and we may give away:
// a machine inside another container lacks some.
func availableCapabilities() ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, os.NewSyscallError("capget", err)
	}
	permitted := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	var out []string
	for i, name := range capabilities.KnownCapabilities() { // in the kernel's order
		if permitted&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out, nil
}

// capabilitySet applies a spec's changes to the default set. Drops come
// before adds, so that "drop ALL, add one" leaves that one.
func capabilitySet(s *Spec) ([]string, error) {
	known, err := availableCapabilities()
	if err != nil || s.Privileged {
		return known, err
	}
	set := slices.DeleteFunc(defaultCapabilities(), func(c string) bool { return !slices.Contains(known, c) })
	normal := func(name string) (string, error) {
		name = strings.ToUpper(name)
		if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if name == "CAP_ALL" {
			name = "ALL"
		}
		if name != "ALL" && !slices.Contains(known, name) {
			return "", fmt.Errorf("capability %q is unknown, or not to be had on this machine", name)
		}
		return name, nil
	}
	for _, name := range s.Capabilities.Drop {
		name, err := normal(name)
		if err != nil {
			continue // what is not there need not be dropped
		}
		set = slices.DeleteFunc(set, func(c string) bool { return name == "ALL" || c == name })
	}
	for _, name := range s.Capabilities.Add {
		name, err := normal(name)
		switch {
		case err != nil:
			return nil, err
		case name == "ALL":
			set = slices.DeleteFunc(slices.Clone(known), func(c string) bool {
				return slices.ContainsFunc(s.Capabilities.Drop, func(d string) bool { n, _ := normal(d); return n == c })
			})
		case !slices.Contains(set, name):
			set = append(set, name)
		}
	}
	return set, nil
}

func configDevices(nodes []node) []*deviceconfig.Device {
	out := make([]*deviceconfig.Device, 0, len(nodes))
	for _, n := range nodes {
		kind := deviceconfig.CharDevice
		if n.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = deviceconfig.BlockDevice
		}
		out = append(out, &deviceconfig.Device{
			Path: "/dev/" + n.Path, FileMode: os.FileMode(n.Mode & 0o7777), Uid: uint32(n.UID), Gid: uint32(n.GID),
			Rule: deviceconfig.Rule{Type: kind, Major: int64(unix.Major(n.Dev)), Minor: int64(unix.Minor(n.Dev)), Permissions: "rwm", Allow: true},
		})
	}
	return out
}

// processConfig is how libcontainer is to run the spec's own process.
func processConfig(s *Spec, c *configs.Config) *initConfig {
	return &initConfig{
		Config: c, Args: s.Args, Env: s.Env, UID: int(s.User.UID), GID: int(s.User.GID), AdditionalGroups: ints(s.User.Groups),
		Cwd: cmp.Or(s.Cwd, "/"), CreateConsole: s.TTY, Capabilities: c.Capabilities,
		NoNewPrivileges: s.NoNewPrivileges, ContainerID: s.ID,
	}
}
