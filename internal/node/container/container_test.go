// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sonagi/sonagi/internal/node/container"
)

func TestRunsToItsEnd(t *testing.T) {
	l := newLab(t)
	s := l.spec("echo hello; echo oops >&2; exit 7")
	out, e := l.output(s)
	if !strings.Contains(out, "hello\n") || !strings.Contains(out, "oops\n") {
		t.Errorf("log is %q", out)
	}
	if e.Exit.Code != 7 || e.Exit.OOMKilled || e.Exit.Unknown {
		t.Errorf("exit is %+v", e.Exit)
	}
	must(t, l.client.Delete(t.Context(), s.ID))
	must(t, l.client.Delete(t.Context(), s.ID))
	left, err := l.client.List(t.Context())
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left after delete: %+v", left)
	}
}

// TestSurroundings runs one script per promise about what a container sees.
func TestSurroundings(t *testing.T) {
	l := newLab(t)
	score := -500
	host := t.TempDir()
	must(t, os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644))
	net := netNS(t)
	for _, tt := range []struct {
		name   string
		script string
		change func(*container.Spec)
		want   string // all of the output
	}{
		{"identity", "id -u; id -g; id -G", func(s *container.Spec) { s.User = container.User{UID: 1000, GID: 2000, Groups: []uint32{3000}} }, "1000\n2000\n2000 3000\n"},
		{"environment", "echo $GREETING $HOME", func(s *container.Spec) { s.Env = append(s.Env, "GREETING=hi") }, "hi /root\n"},
		{"working directory is made", "pwd", func(s *container.Spec) { s.Cwd = "/data/sub" }, "/data/sub\n"},
		{"hostname", "hostname", nil, "box\n"},
		{"first process", "echo $$", nil, "1\n"},
		{"default capabilities", "grep CapEff /proc/self/status", nil, "CapEff:\t00000000a80425fb\n"},
		{"no capabilities", "grep CapEff /proc/self/status; grep CapBnd /proc/self/status", func(s *container.Spec) { s.Capabilities.Drop = []string{"ALL"} }, "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"},
		{"one capability", "grep CapEff /proc/self/status", func(s *container.Spec) {
			s.Capabilities = container.Capabilities{Drop: []string{"ALL"}, Add: []string{"NET_BIND_SERVICE"}}
		}, "CapEff:\t0000000000000400\n"},
		{"seccomp and no new privileges", "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", func(s *container.Spec) { s.NoNewPrivileges = true }, "NoNewPrivs:\t1\nSeccomp:\t2\n"},
		{"seccomp for users", "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", func(s *container.Spec) { s.User = container.User{UID: 1000} }, "NoNewPrivs:\t0\nSeccomp:\t2\n"},
		{"unconfined", "grep Seccomp: /proc/self/status", func(s *container.Spec) { s.Seccomp = container.Unconfined }, "Seccomp:\t0\n"},
		{"namespaces are denied", "unshare -n true 2>&1 | grep -o 'Operation not permitted'", nil, "Operation not permitted\n"},
		{"mounts are denied to the capable without a profile's leave", "mount -t tmpfs x /tmp 2>&1 | grep -c denied", nil, "1\n"},
		{"kernel settings are read-only", "{ echo 1 > /proc/sys/vm/drop_caches; } 2>&1; echo done", nil, "sh: can't create /proc/sys/vm/drop_caches: Read-only file system\ndone\n"},
		{"secrets are masked", "{ cat /proc/keys /proc/timer_list /proc/kcore; ls /sys/firmware; } 2>&1; echo done", nil, "cat: can't open '/proc/kcore': No such file or directory\ndone\n"},
		{"writable root", "echo x > /data/file && cat /data/file", nil, "x\n"},
		{"read-only root", "touch /data/x 2>&1; echo > /dev/shm/y && echo shm is not", func(s *container.Spec) { s.ReadOnlyRoot = true }, "touch: /data/x: Read-only file system\nshm is not\n"},
		{"bind mount", "cat /data/file; { echo x > /data/file; } 2>&1", func(s *container.Spec) {
			s.Mounts = []container.Mount{{Source: host, Destination: "/data", Options: []string{"ro"}}}
		}, "from the host\nsh: can't create /data/file: Read-only file system\n"},
		{"file over a file, inner after outer", "cat /data/deep/file", func(s *container.Spec) {
			s.Mounts = []container.Mount{{Source: host + "/file", Destination: "/data/deep/file"}, {Destination: "/data", Type: "tmpfs", Options: []string{"size=1m"}}}
		}, "from the host\n"},
		{"shm size", "stat -f -c %b /dev/shm", func(s *container.Spec) { s.ShmSize = 1 << 20 }, "256\n"},
		{"devices", "echo x > /dev/null; head -c 3 /dev/zero | wc -c; ls /dev", nil, "3\ncore\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"},
		{"no host device", "mknod /tmp/m b 254 0; cat /tmp/m 2>&1 | head -c 200 | grep -c -i 'not permitted\\|denied'", nil, "1\n"},
		{"sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", func(s *container.Spec) {
			s.NetNS, s.Sysctls = net, map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
		}, "0\n"},
		{"joined network namespace", "stat -L -c %i /proc/self/ns/net", func(s *container.Spec) { s.NetNS = net }, inode(t, net) + "\n"},
		{"oom score that we may not give is not fatal", "echo runs", func(s *container.Spec) { s.OOMScoreAdj = &score }, "runs\n"},
		{"own cgroup", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares; { echo 1 > /sys/fs/cgroup/cpu/cpu.shares; } 2>&1", func(s *container.Spec) {
			s.Resources = container.Resources{Memory: 64 << 20, Pids: 50, CPUQuota: 50_000, CPUShares: 512}
		}, "67108864\n50\n50000\n512\nsh: can't create /sys/fs/cgroup/cpu/cpu.shares: Read-only file system\n"},
		{"privileged", "grep -E 'Seccomp:|CapEff' /proc/self/status; mount -t tmpfs x /tmp && echo mounted; touch /proc/sys/x 2>&1 | grep -c Read-only", func(s *container.Spec) { s.Privileged = true }, "CapEff:\t" + effective(t) + "\nSeccomp:\t0\nmounted\n0\n"},
		{"stdin is empty", "cat; echo end", nil, "end\n"},
		{"long line", "head -c 40000 /dev/zero | tr '\\0' x; echo", nil, strings.Repeat("x", 40000) + "\n"},
		{"no end of line", "printf partial", nil, "partial"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.name, "own cgroup") {
				if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err != nil {
					t.Skip("written for cgroup v1")
				}
			}
			s := l.spec(tt.script)
			if tt.change != nil {
				tt.change(&s)
			}
			got, e := l.output(s)
			if got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s\nexit %+v", got, tt.want, e.Exit)
			}
			must(t, l.client.Delete(t.Context(), s.ID))
		})
	}
}

// effective are all the capabilities there are here.
func effective(t *testing.T) string {
	text, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func inode(t *testing.T, path string) string {
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return fmt.Sprint(st.Ino)
}

func TestWillNotStart(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct {
		name   string
		change func(*container.Spec)
		want   string
	}{
		{"not in path", func(s *container.Spec) { s.Args = []string{"foo"} }, `unable to start container process: error during container init: exec: "foo": executable file not found in $PATH`},
		{"no such file", func(s *container.Spec) { s.Args = []string{"/foo"} }, `exec: "/foo": stat /foo: no such file or directory`},
		{"not executable", func(s *container.Spec) { s.Args = []string{"/etc/passwd"} }, `exec: "/etc/passwd": permission denied`},
		{"working directory is a file", func(s *container.Spec) { s.Cwd = "/etc/passwd" }, `mkdir /etc/passwd: not a directory`},
		{"no mount source", func(s *container.Spec) {
			s.Mounts = []container.Mount{{Source: "/nowhere/at/all", Destination: "/data"}}
		}, `no such file or directory`},
		{"no command", func(s *container.Spec) { s.Args = nil }, `no command specified`},
		{"unknown capability", func(s *container.Spec) { s.Capabilities.Add = []string{"MAGIC"} }, `capability "CAP_MAGIC" is unknown`},
		{"no profile", func(s *container.Spec) { s.Seccomp = "/nowhere.json" }, `no such file or directory`},
		{"no root file system", func(s *container.Spec) { s.RootFS = "/nowhere" }, `no such file or directory`},
		{"no namespace", func(s *container.Spec) { s.NetNS = "/nowhere" }, `no such file or directory`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := l.spec("true")
			tt.change(&s)
			err := l.client.Create(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			var start *container.StartError
			if strings.HasPrefix(tt.want, "unable") && (!errors.As(err, &start) || start.Reason != "StartError") {
				t.Errorf("%#v is no StartError", err)
			}
			if _, err := l.client.Status(t.Context(), s.ID); !errors.Is(err, container.ErrNotFound) {
				t.Errorf("it is there all the same: %v", err)
			}
		})
	}
	t.Run("exists", func(t *testing.T) {
		s := l.spec("sleep 60")
		l.run(s)
		if err := l.client.Create(t.Context(), s); !errors.Is(err, container.ErrExists) {
			t.Errorf("got %v", err)
		}
		if _, err := l.client.Start(t.Context(), s.ID); !errors.Is(err, container.ErrNotRunning) {
			t.Errorf("started twice: %v", err)
		}
	})
	t.Run("not a program", func(t *testing.T) {
		s := l.spec("")
		must(t, os.WriteFile(filepath.Join(s.RootFS, "bad"), []byte("\x7fELFnot"), 0o755))
		s.Args = []string{"/bad"}
		out, e := l.output(s)
		if e.Exit.Code != 255 || !strings.Contains(out, "exec format error") {
			t.Errorf("exit %+v, log %q", e.Exit, out)
		}
	})
}

func TestSeccompProfileFromFile(t *testing.T) {
	l := newLab(t)
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28},
		{"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":95,"args":[{"index":1,"value":10,"op":"SCMP_CMP_EQ"}]}]}`), 0o600))
	s := l.spec("mkdir /data/x 2>&1; kill -USR1 1 2>&1; kill -0 1 && echo may")
	s.Seccomp = profile
	out, _ := l.output(s)
	if want := "mkdir: can't create directory '/data/x': No space left on device\nsh: can't kill pid 1: Operation not supported\nmay\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestSignals(t *testing.T) {
	l := newLab(t)
	polite := l.spec("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
	l.run(polite)
	l.says(polite, "ready")
	must(t, l.client.Signal(t.Context(), polite.ID, syscall.SIGTERM))
	if e := l.exit(polite.ID); e.Exit.Code != 3 {
		t.Errorf("exit %+v", e.Exit)
	}
	deaf := l.spec("trap '' TERM; echo ready; while :; do sleep 0.1; done")
	l.run(deaf)
	l.says(deaf, "ready")
	must(t, l.client.Signal(t.Context(), deaf.ID, syscall.SIGTERM))
	must(t, l.client.Kill(t.Context(), deaf.ID))
	if e := l.exit(deaf.ID); e.Exit.Code != 137 || e.Exit.Signal != syscall.SIGKILL || e.Exit.OOMKilled {
		t.Errorf("exit %+v", e.Exit)
	}
	if err := l.client.Signal(t.Context(), deaf.ID, syscall.SIGTERM); !errors.Is(err, container.ErrNotRunning) {
		t.Errorf("signal to the dead: %v", err)
	}
}

// says waits until a container has said something.
func (l *lab) says(s container.Spec, what string) {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(s.LogPath); err == nil && strings.Contains(string(text), what) {
			return
		}
	}
	l.t.Fatalf("%s does not say %q: %s", s.ID, what, l.log(s))
}

func TestOutOfMemory(t *testing.T) {
	l := newLab(t)
	s := l.spec("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 1")
	s.Args = []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}
	s.Resources.Memory = 20 << 20
	l.run(s)
	if e := l.exit(s.ID); !e.Exit.OOMKilled || e.Exit.Code != 137 {
		t.Errorf("exit %+v", e.Exit)
	}
}

func TestForkBomb(t *testing.T) {
	l := newLab(t)
	bomb := goProgram(t, `package main
import "os/exec"
func main() { for { exec.Command("/proc/self/exe").Start() } }`)
	s := l.spec("")
	must(t, os.Link(bomb, filepath.Join(s.RootFS, "bomb")))
	s.Args = []string{"/bomb"}
	s.Resources.Pids = 64
	l.run(s)
	l.fills(s.ID, 60)
	calm, _ := l.output(l.spec("echo others are well"))
	if calm != "others are well\n" {
		t.Errorf("got %q", calm)
	}
	must(t, l.client.Delete(t.Context(), s.ID))
}

// fills waits until a container has that many processes.
func (l *lab) fills(id string, n uint64) {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if u, err := l.client.Stats(l.t.Context(), id); err == nil && u.Pids >= n {
			return
		}
	}
	l.t.Fatalf("%s does not grow", id)
}

func TestLogFlood(t *testing.T) {
	l := newLab(t)
	s := l.spec("yes 'a line of some length that repeats itself' | head -c 80000000; echo over")
	l.run(s)
	l.exit(s.ID)
	files, err := filepath.Glob(s.LogPath + "*")
	must(t, err)
	total := int64(0)
	for _, f := range files {
		info, err := os.Stat(f)
		must(t, err)
		total += info.Size()
	}
	if len(files) != 5 || total > 5*(11<<20) {
		t.Errorf("%d files, %d bytes", len(files), total)
	}
	if !strings.HasSuffix(l.log(s), "over\n") {
		t.Error("the last line is missing")
	}
}

func TestExec(t *testing.T) {
	l := newLab(t)
	s := l.spec("echo up; sleep 60")
	s.Env = append(s.Env, "COLOR=red")
	s.Cwd = "/data"
	l.run(s)
	l.says(s, "up")
	if out, code := l.exec(s.ID, "echo $COLOR; pwd; hostname; ps | grep -v grep | grep -v 'sh -c' | grep -c 'sleep 60'; exit 5"); out != "red\n/data\nbox\n1\n" || code != 5 {
		t.Errorf("%d %q", code, out)
	}
	if out, code := l.exec(s.ID, "grep -E 'Seccomp:|CapEff' /proc/self/status; cat /proc/self/cgroup | grep -c pod/"+s.ID); code != 0 || out != "CapEff:\t00000000a80425fb\nSeccomp:\t2\n7\n" {
		t.Errorf("%d %q", code, out)
	}
	var out, errs bytes.Buffer
	code, err := l.client.Exec(t.Context(), s.ID, container.ExecSpec{Args: []string{"sh", "-c", "cat; echo $WHO $(id -u); echo e >&2"}, Env: []string{"WHO=me"}, User: &container.User{UID: 1000}},
		container.Streams{In: strings.NewReader("input\n"), Out: &out, Err: &errs})
	if err != nil || code != 0 || out.String() != "input\nme 1000\n" || errs.String() != "e\n" {
		t.Errorf("%v %d %q %q", err, code, out.String(), errs.String())
	}
	_, err = l.client.Exec(t.Context(), s.ID, container.ExecSpec{Args: []string{"foo"}}, container.Streams{})
	if err == nil || !strings.Contains(err.Error(), `exec: "foo": executable file not found in $PATH`) {
		t.Errorf("got %v", err)
	}
	must(t, l.client.Kill(t.Context(), s.ID))
	if _, err := l.client.Exec(t.Context(), s.ID, container.ExecSpec{Args: []string{"true"}}, container.Streams{}); !errors.Is(err, container.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	l := newLab(t)
	s := l.spec("sleep 60")
	l.run(s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := l.client.Exec(ctx, s.ID, container.ExecSpec{Args: []string{"sleep", "61"}}, container.Streams{})
		done <- err
	}()
	l.fills(s.ID, 2)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		u, err := l.client.Stats(t.Context(), s.ID)
		must(t, err)
		if u.Pids == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes are left", u.Pids)
		}
	}
}

func TestExecTerminal(t *testing.T) {
	l := newLab(t)
	s := l.spec("sleep 60")
	l.run(s)
	sizes := make(chan container.Size, 1)
	sizes <- container.Size{Width: 132, Height: 43}
	var out bytes.Buffer
	code, err := l.client.Exec(t.Context(), s.ID, container.ExecSpec{Args: []string{"sh", "-c", "read line; tty; stty size; echo got $line; exit 4"}, TTY: true},
		container.Streams{In: &slow{text: "typed\n", after: 300 * time.Millisecond}, Out: &out, Resize: sizes})
	if err != nil || code != 4 {
		t.Fatalf("%d %v", code, err)
	}
	for _, want := range []string{"/dev/pts/0", "43 132", "got typed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
}

// slow is a person who types after a while.
type slow struct {
	text  string
	after time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(s.after)
	if s.text == "" {
		select {}
	}
	n := copy(p, s.text)
	s.text = ""
	return n, nil
}

func TestAttach(t *testing.T) {
	l := newLab(t)
	s := l.spec("read line; echo got $line; read rest || echo end of input; exit 2")
	s.Stdin, s.StdinOnce = true, true
	l.run(s)
	var out lockedBuffer
	must(t, l.client.Attach(t.Context(), s.ID, container.Streams{In: strings.NewReader("hello\n"), Out: &out, Err: &out}))
	if got := out.String(); got != "got hello\nend of input\n" {
		t.Errorf("got %q", got)
	}
	if e := l.exit(s.ID); e.Exit.Code != 2 {
		t.Errorf("exit %+v", e.Exit)
	}
	if got := l.log(s); got != "got hello\nend of input\n" {
		t.Errorf("log %q", got)
	}
}

func TestAttachTerminal(t *testing.T) {
	l := newLab(t)
	s := l.spec("read line; tty; echo got $line; stty size")
	s.Stdin, s.TTY = true, true
	must(t, l.client.Create(t.Context(), s))
	must(t, l.client.Resize(t.Context(), s.ID, container.Size{Width: 99, Height: 33}))
	_, err := l.client.Start(t.Context(), s.ID)
	must(t, err)
	var out lockedBuffer
	must(t, l.client.Attach(t.Context(), s.ID, container.Streams{In: &slow{text: "hello\n", after: 100 * time.Millisecond}, Out: &out}))
	for _, want := range []string{"/dev/pts/0", "got hello", "33 99"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
}

func TestStats(t *testing.T) {
	l := newLab(t)
	s := l.spec("echo up; while :; do :; done")
	l.run(s)
	l.says(s, "up")
	var u container.Usage
	for deadline := time.Now().Add(10 * time.Second); u.CPUNanos < 50e6 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var err error
		u, err = l.client.Stats(t.Context(), s.ID)
		must(t, err)
	}
	if u.CPUNanos < 50e6 || u.MemoryUsage == 0 || u.MemoryRSS == 0 || u.MemoryWorkingSet == 0 || u.Pids != 1 {
		t.Errorf("%+v", u)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	l := newLab(t)
	pause := container.Spec{ID: "pause", Pause: true, CgroupParent: l.parent() + "/pod"}
	started := l.run(pause)
	s := l.spec("sleep 601 & sleep 602 & until [ $(ps | grep -v -e grep -e until | grep -c 'sleep 6') = 2 ]; do :; done; echo both; wait")
	s.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", started.Pid)
	l.run(s)
	l.says(s, "both")
	must(t, l.client.Signal(t.Context(), s.ID, syscall.SIGKILL))
	l.exit(s.ID)
	other := l.spec("ps | grep -v grep | grep -c 'sleep 60[12]'; ps | head -2 | grep -c '1 65535'; ls /proc/1/root")
	other.PIDNS = s.PIDNS
	if out, _ := l.output(other); !strings.HasPrefix(out, "0\n1\n") || strings.Contains(out, "etc") {
		t.Errorf("left in the shared namespace: %s", out)
	}
	if e, _ := l.client.Status(t.Context(), pause.ID); e.State != container.Running {
		t.Errorf("%+v", e)
	}
	must(t, l.client.Signal(t.Context(), pause.ID, syscall.SIGTERM))
	if e := l.exit(pause.ID); e.Exit.Code != 0 {
		t.Errorf("exit %+v", e.Exit)
	}
}

func TestReopenLog(t *testing.T) {
	l := newLab(t)
	s := l.spec("echo one; read x; echo two")
	s.Stdin = true
	l.run(s)
	l.says(s, "one")
	must(t, os.Rename(s.LogPath, s.LogPath+".moved"))
	must(t, l.client.ReopenLog(t.Context(), s.ID))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = l.client.Attach(ctx, s.ID, container.Streams{In: strings.NewReader("go\n")}) }()
	l.exit(s.ID)
	if got := l.log(s); got != "two\n" {
		t.Errorf("log %q", got)
	}
}
