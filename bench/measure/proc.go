// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on Linux everywhere.
const tick = 10 * time.Millisecond

// Procs are processes of one program.
type Procs []int

// ProcsOf returns the processes of the platform with this data directory:
// those of its own, without containers.
func ProcsOf(dataDir string) (ps Procs) {
	for _, pid := range pids() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		program, args, _ := bytes.Cut(cmdline, []byte{0})
		if strings.HasPrefix(filepath.Base(string(program)), "sonagi") && bytes.Contains(args, []byte(dataDir)) {
			ps = append(ps, pid)
		}
	}
	return ps
}

// With returns those that were started with the argument.
func (ps Procs) With(argument string) (some Procs) {
	for _, pid := range ps {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if slices.Contains(strings.Split(string(cmdline), "\x00"), argument) {
			some = append(some, pid)
		}
	}
	return some
}

// Family returns a process and all its descendants.
func Family(root int) (ps Procs) {
	children := map[int][]int{}
	for _, pid := range pids() {
		if stat, err := readStat(pid); err == nil {
			children[stat.parent] = append(children[stat.parent], pid)
		}
	}
	for ps = (Procs{root}); len(children) > 0; {
		before := len(ps)
		for _, p := range ps {
			ps = append(ps, children[p]...)
			delete(children, p)
		}
		if len(ps) == before {
			break
		}
	}
	return ps
}

func pids() (ps []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			ps = append(ps, pid)
		}
	}
	return ps
}

// CPU is the processor time that they have used, with all their threads.
func (ps Procs) CPU() (sum time.Duration) {
	for _, pid := range ps {
		if stat, err := readStat(pid); err == nil {
			sum += stat.cpu
		}
	}
	return sum
}

// PSS is their memory: a page that n processes share counts as an nth of it.
func (ps Procs) PSS() (sum int64) {
	for _, pid := range ps {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(text)) {
			if kb, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kb), " kB"), 10, 64)
				sum += n << 10
			}
		}
	}
	return sum
}

type stat struct {
	parent int
	cpu    time.Duration
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(text))
}

// parseStat reads the fields after the name, which may contain anything.
func parseStat(text string) (stat, error) {
	_, rest, ok := cutLast(text, ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return stat{}, fmt.Errorf("not a process state: %.60q", text)
	}
	var n [3]int64
	for i, field := range []int{1, 11, 12} { // parent, user, system
		v, err := strconv.ParseInt(f[field], 10, 64)
		if err != nil {
			return stat{}, fmt.Errorf("process state: %w", err)
		}
		n[i] = v
	}
	return stat{int(n[0]), time.Duration(n[1]+n[2]) * tick}, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
