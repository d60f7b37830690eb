// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/container/small"
)

// runtimePid is the process at the other end of the socket.
func (l *lab) runtimePid() int {
	l.t.Helper()
	conn, err := net.Dial("unix", l.options().Socket)
	must(l.t, err)
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	must(l.t, err)
	pid := 0
	must(l.t, raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	}))
	return pid
}

// TestRuntimeKilled kills the runtime, again and again, under containers that
// write, wait, and end while there is none.
func TestRuntimeKilled(t *testing.T) {
	l := newLab(t)
	talker := l.spec("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done")
	ender := l.spec("echo up; while [ ! -e /data/end ]; do sleep 0.02; done; exit 9")
	asleep := l.spec("echo up; sleep 600")
	unstarted := l.spec("echo never")
	for _, s := range []container.Spec{talker, ender, asleep} {
		l.run(s)
	}
	l.says(ender, "up")
	must(t, l.client.Create(t.Context(), unstarted))
	before, err := l.client.Status(t.Context(), asleep.ID)
	must(t, err)

	must(t, syscall.Kill(l.runtimePid(), syscall.SIGKILL))
	if e := l.exit(unstarted.ID); e.Exit.Code == 0 {
		t.Errorf("the container that never ran ended well: %+v", e.Exit)
	}
	after, err := l.client.Status(t.Context(), asleep.ID)
	must(t, err)
	if after.State != container.Running || after.Pid != before.Pid || !after.StartedAt.Equal(before.StartedAt) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	// It ends under a runtime that is not its parent.
	must(t, os.WriteFile(filepath.Join(ender.RootFS, "data/end"), nil, 0o644))
	if e := l.exit(ender.ID); !e.Exit.Unknown && e.Exit.Code != 9 {
		t.Errorf("exit %+v", e.Exit)
	} else if e.Exit.Unknown {
		t.Log("this kernel does not tell the exit code of an adopted container")
	}
	for range 3 {
		must(t, syscall.Kill(l.runtimePid(), syscall.SIGKILL))
		_, err := l.client.List(t.Context())
		must(t, err)
		if out, code := l.exec(asleep.ID, "echo $$ works"); code != 0 || !strings.Contains(out, "works") {
			t.Errorf("exec in an adopted container: %d %q", code, out)
		}
	}
	// The talker was never cut off: its lines go on, and nothing but what a
	// pipe may lose between two readers is missing.
	lines := strings.Count(l.log(talker), "\n")
	l.says(talker, fmt.Sprintf("line %d", lines+50))
	must(t, l.client.Delete(t.Context(), asleep.ID))
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", before.Pid)); err == nil && len(line) > 0 { // a zombie has none
		t.Error("the adopted container lives after its removal")
	}
}

// TestTerminalSurvives holds that a terminal and an open input outlive the
// runtime.
func TestTerminalSurvives(t *testing.T) {
	l := newLab(t)
	term := l.spec("while read line; do echo got $line; done; echo hung up")
	term.TTY, term.Stdin = true, true
	in := l.spec("while read line; do echo got $line; done; echo end of input")
	in.Stdin = true
	for _, s := range []container.Spec{term, in} {
		l.run(s)
		l.enter(s, "one")
	}
	must(t, syscall.Kill(l.runtimePid(), syscall.SIGKILL))
	for _, s := range []container.Spec{term, in} {
		l.enter(s, "two")
		status, err := l.client.Status(t.Context(), s.ID)
		must(t, err)
		if status.State != container.Running {
			t.Errorf("%+v\n%s", status, l.log(s))
		}
	}
}

// enter types a line into a container and waits for its answer.
func (l *lab) enter(s container.Spec, line string) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var out lockedBuffer
		_ = l.client.Attach(ctx, s.ID, container.Streams{In: strings.NewReader(line + "\n"), Out: &out})
	}()
	l.says(s, "got "+line)
	cancel()
	<-done
}

// TestUpgrade starts a client of another build: its runtime takes the place
// of the old one, and the containers do not notice.
func TestUpgrade(t *testing.T) {
	l := newLab(t)
	s := l.spec("echo up; sleep 600")
	before := l.run(s)
	l.says(s, "up")
	old := l.runtimePid()
	o := l.options()
	binary, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	o.Binary = append(binary, "another build"...)
	c, err := container.Launch(t.Context(), o)
	must(t, err)
	if l.runtimePid() == old {
		t.Error("the old runtime is there")
	}
	now, err := c.Status(t.Context(), s.ID)
	must(t, err)
	if now.State != container.Running || now.Pid != before.Pid {
		t.Errorf("%+v", now)
	}
}

// TestStarterKilled kills the process that started the runtime.
func TestStarterKilled(t *testing.T) {
	if dir := os.Getenv("CONTAINER_TEST_STARTER"); dir != "" {
		l := &lab{t: t, dir: dir}
		l.client = l.launch()
		s := l.spec("echo up; sleep 600")
		s.CgroupParent = os.Getenv("CONTAINER_TEST_PARENT")
		l.run(s)
		l.says(s, "up")
		fmt.Println("READY", s.ID)
		select {}
	}
	l := newLab(t)
	must(t, l.client.Shutdown(t.Context()))
	cmd := exec.Command("/proc/self/exe", "-test.run=TestStarterKilled$")
	cmd.Env = append(os.Environ(), "CONTAINER_TEST_STARTER="+l.dir, "CONTAINER_TEST_PARENT="+l.parent()+"/pod")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	text, said := make([]byte, 4096), ""
	for !strings.Contains(said, "READY") {
		n, err := out.Read(text)
		said += string(text[:n])
		if err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	}
	must(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
	_ = cmd.Wait()
	pid := l.runtimePid()
	l.client = l.launch()
	if l.runtimePid() != pid {
		t.Error("another runtime was started")
	}
	all, err := l.client.List(t.Context())
	must(t, err)
	if len(all) != 1 || all[0].State != container.Running {
		t.Errorf("%+v", all)
	}
}

// TestNothingIsLeft runs fifty containers up and down, several at a time.
func TestNothingIsLeft(t *testing.T) {
	l := newLab(t)
	net := netNS(t)
	errs := make(chan error)
	specs := make(chan container.Spec, 50)
	for range cap(specs) {
		s := l.spec("sleep 600 & sleep 601")
		s.NetNS = net
		specs <- s
	}
	close(specs)
	before := processes(t)
	for range 5 {
		go func() {
			for s := range specs {
				err := l.client.Create(t.Context(), s)
				if err == nil {
					_, err = l.client.Start(t.Context(), s.ID)
				}
				if err == nil {
					err = l.client.Delete(t.Context(), s.ID)
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 5 {
		must(t, <-errs)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n := processes(t); n <= before {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d sleeping processes, %d before", n, before)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(l.dir, "containers", "boxes")); len(left) != 0 {
		t.Errorf("left in the state directory: %v", left)
	}
}

// processes counts the sleepers of this test on the machine.
func processes(t *testing.T) int {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	n := 0
	for _, f := range found {
		if line, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(line), "sleep\x0060") {
			n++
		}
	}
	return n
}

// TestManyAtOnce starts more containers at the same moment than are made ahead.
func TestManyAtOnce(t *testing.T) {
	l := newLab(t)
	var ids []string
	errs := make(chan error)
	began := time.Now()
	for range 16 {
		s := l.spec("echo up")
		ids = append(ids, s.ID)
		go func() {
			err := l.client.Create(t.Context(), s)
			if err == nil {
				_, err = l.client.Start(t.Context(), s.ID)
			}
			errs <- err
		}()
	}
	for range ids {
		must(t, <-errs)
	}
	t.Logf("%d containers in %v", len(ids), time.Since(began))
	for _, id := range ids {
		if e := l.exit(id); e.Exit.Code != 0 {
			t.Errorf("%s: %+v", id, e.Exit)
		}
	}
}

// TestSmall holds the memory of the runtime to its bound.
func TestSmall(t *testing.T) {
	l := newLab(t)
	for range 20 {
		l.run(l.spec("echo up; sleep 600"))
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.runtimePid()))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "VmRSS:")
		if !ok {
			continue
		}
		kb, err := strconv.Atoi(strings.Fields(rest)[0])
		must(t, err)
		t.Logf("%d KB with 20 containers", kb)
		if small.Binary() != nil && os.Getenv("CONTAINER_TEST_SELF") == "" && kb > 15<<10 {
			t.Error("more than 15 MB")
		}
	}
}
