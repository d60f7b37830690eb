// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A Part is what the supervisor's state file says of one child.
type Part struct {
	Pid      int  `json:"pid"`
	Ready    bool `json:"ready"`
	Restarts int  `json:"restarts"`
}

// Part is the state of control or node.
func (p *Platform) Part(name string) (Part, error) {
	var state struct {
		Children map[string]Part `json:"children"`
	}
	text, err := os.ReadFile(filepath.Join(p.DataDir, "run", "state.json"))
	if err == nil {
		err = json.Unmarshal(text, &state)
	}
	if err != nil {
		return Part{}, err
	}
	part, ok := state.Children[name]
	if !ok {
		return Part{}, fmt.Errorf("no %s in the state file", name)
	}
	return part, nil
}

// Runtime is the pid of the parent of all containers, or 0.
func (p *Platform) Runtime() int {
	for _, pid := range pids() {
		if args := cmdline(pid); len(args) > 2 && args[1] == "runtime" && args[2] == filepath.Join(p.DataDir, "containers") {
			return pid
		}
	}
	return 0
}

// Own are the pids of the platform's processes, without its containers'.
func (p *Platform) Own() (own []int) {
	for _, pid := range pids() {
		args := cmdline(pid)
		if len(args) == 0 || strings.HasSuffix(args[0], ".test") {
			continue
		}
		if slices.ContainsFunc(args, func(a string) bool { return a == p.DataDir || strings.HasPrefix(a, p.DataDir+"/") }) {
			own = append(own, pid)
		}
	}
	return own
}

// Containers are the pids of all processes in the platform's pods, by the network namespace that they are in.
func (p *Platform) Containers() (in []int) {
	namespaces := map[uint64]bool{}
	pinned, _ := filepath.Glob(filepath.Join(p.DataDir, "run", "sandboxes", "*", "net"))
	for _, path := range pinned {
		if n, ok := inode(path); ok {
			namespaces[n] = true
		}
	}
	for _, pid := range pids() {
		if n, ok := inode(fmt.Sprintf("/proc/%d/ns/net", pid)); ok && namespaces[n] {
			in = append(in, pid)
		}
	}
	return in
}

// In are the pids of the processes in a container, by its cgroup.
func (p *Platform) In(container string) (in []int) {
	for _, pid := range pids() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if strings.Contains(string(text), "/"+container) && !zombie(pid) {
			in = append(in, pid)
		}
	}
	return in
}

// Kill sends SIGKILL; that a process has ended already is no matter.
func Kill(pids ...int) {
	for _, pid := range pids {
		if pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Crash kills every process of the platform and of its pods, as a power cut
// would, and unmounts nothing.
func (p *Platform) Crash() {
	for {
		all := slices.DeleteFunc(append(p.Own(), p.Containers()...), zombie)
		if len(all) == 0 {
			return
		}
		Kill(all...)
	}
}

// Alive says whether a process is there and no zombie.
func Alive(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) }

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return len(rest) > 0 && (rest[0] == 'Z' || rest[0] == 'X')
}

func pids() (all []int) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func cmdline(pid int) []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == 0 })
}

func inode(path string) (uint64, bool) {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0, false
	}
	return st.Ino, true
}
