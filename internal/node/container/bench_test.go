// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/internal/node/container"
)

// BenchmarkStart measures a container with a root file system and a network
// namespace that are there already: from the request to create it, through the
// request to start it, to the first line that its program, a small static Go
// binary, prints. It prints the median and the 90th percentile of each stage,
// and those of a bare fork and exec of the same program.
func BenchmarkStart(b *testing.B) {
	l := newLab(b)
	program := goProgram(b, `package main
import "os"
func main() { os.Stdout.WriteString("hello\n") }`)
	root := l.rootfs()
	must(b, os.Link(program, filepath.Join(root, "hello")))
	net := netNS(b)
	cpu0, bare := cpuOf(l.runtimePid()), time.Duration(0)
	stages := map[string][]time.Duration{}
	for i := 0; b.Loop(); i++ {
		s := l.spec("")
		s.ID, s.RootFS, s.Args, s.NetNS = fmt.Sprintf("bench%d", i), root, []string{"/hello"}, net
		s.Resources = container.Resources{CPUShares: 100, CPUQuota: 100_000, Memory: 64 << 20, Pids: 100}
		time.Sleep(300 * time.Millisecond) // the next process made ahead is ready by then, as before a real cold start
		began := time.Now()
		must(b, l.client.Create(b.Context(), s))
		created := time.Now()
		_, err := l.client.Start(b.Context(), s.ID)
		must(b, err)
		started := time.Now()
		l.exit(s.ID)
		text, err := os.ReadFile(s.LogPath)
		must(b, err)
		said, err := time.Parse(time.RFC3339Nano, strings.Fields(string(text))[0])
		must(b, err)
		stages["1 create"] = append(stages["1 create"], created.Sub(began))
		stages["2 start"] = append(stages["2 start"], started.Sub(created))
		stages["3 first line"] = append(stages["3 first line"], said.Sub(started))
		stages["4 all"] = append(stages["4 all"], said.Sub(began))
		deleting := time.Now()
		must(b, l.client.Delete(b.Context(), s.ID))
		stages["5 delete"] = append(stages["5 delete"], time.Since(deleting))

		began = time.Now()
		cmd := exec.Command(program)
		must(b, cmd.Run())
		bare += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		stages["6 bare fork, exec and wait"] = append(stages["6 bare fork, exec and wait"], time.Since(began))
	}
	n := len(stages["4 all"])
	b.Logf("processor time: %v for a container with all that is made ahead for the next, %v for a bare fork and exec", (cpuOf(l.runtimePid())-cpu0)/time.Duration(n), bare/time.Duration(n))
	for _, name := range slices.Sorted(maps.Keys(stages)) {
		d := stages[name]
		slices.Sort(d)
		b.Logf("%-28s p50 %8v  p90 %8v  min %8v", name, d[len(d)/2].Round(time.Microsecond), d[len(d)*9/10].Round(time.Microsecond), d[0].Round(time.Microsecond))
	}
}

// goProgram builds a static program.
func goProgram(t testing.TB, source string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600))
	out := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-o", out, filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, text)
	}
	return out
}

// cpuOf is the processor time of a process and the children it has waited for.
func cpuOf(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields, ticks := strings.Fields(string(text)), 0
	for _, f := range fields[13:17] {
		n, _ := strconv.Atoi(f)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
