// SPDX-License-Identifier: Apache-2.0

// Package refused starts the platform where it cannot run.
package refused

import (
	"context"
	"errors"
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

	"github.com/sonagi/sonagi/test/platform"
)

// sealed in the environment makes the test binary a shell around "sonagi up" that
// first makes the cgroup file system read-only, in a mount namespace of its own.
const sealed = "SONAGI_TEST_SEALED"

func TestMain(m *testing.M) {
	if os.Getenv(sealed) != "" {
		fmt.Fprintln(os.Stderr, sealCgroups())
		os.Exit(99)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the scenarios need root: sudo make test")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func sealCgroups() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.MountSetattr(-1, "/sys/fs/cgroup", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}

func TestRefused(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, p *platform.Platform, cmd *exec.Cmd)
		want    []string
	}{
		{"not root", func(t *testing.T, _ *platform.Platform, cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}, []string{"needs root", "you are user 65534", "sudo"}},
		{"API port taken", func(t *testing.T, p *platform.Platform, _ *exec.Cmd) { take(t, p.APIPort) },
			[]string{"Kubernetes API, is taken by refused.test (pid " + strconv.Itoa(os.Getpid()) + ")", "--api-port"}},
		{"gateway port taken", func(t *testing.T, p *platform.Platform, _ *exec.Cmd) { take(t, p.GatewayPort) },
			[]string{"gateway, is taken by refused.test (pid " + strconv.Itoa(os.Getpid()) + ")", "--port"}},
		{"full disk", func(t *testing.T, p *platform.Platform, _ *exec.Cmd) { mount(t, p, "size=64m") },
			[]string{"only 64 MiB are free", "Free some", "--data-dir"}},
		{"read-only disk", func(t *testing.T, p *platform.Platform, _ *exec.Cmd) { mount(t, p, "size=2g,ro") },
			[]string{"read-only file system", "--data-dir"}},
		{"data directory is a file", func(t *testing.T, p *platform.Platform, _ *exec.Cmd) {
			if err := os.WriteFile(p.DataDir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"not a directory", "--data-dir"}},
		{"no cgroup write", func(t *testing.T, _ *platform.Platform, cmd *exec.Cmd) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Args = append([]string{self}, cmd.Args...)
			cmd.Path = self
			cmd.Env = append(os.Environ(), sealed+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		}, []string{"/sys/fs/cgroup", "read-only", "cgroupns=private"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := reachable(t)
			cmd := exec.Command(filepath.Join(filepath.Dir(p.DataDir), "sonagi"), append([]string{"up"}, p.Flags()...)...)
			tt.prepare(t, p, cmd)
			before := list(t, p)
			out, code := run(t, cmd)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in: %s", want, out)
				}
			}
			if lines := strings.Count(strings.TrimSpace(out), "\n"); lines > 0 {
				t.Errorf("more than one line:\n%s", out)
			}
			t.Log(strings.TrimSpace(out))
			if after := list(t, p); after != before {
				t.Errorf("files before: %s\nafter: %s", before, after)
			}
			if left := p.Leftovers(); len(left) > 0 && !strings.Contains(tt.name, "taken") && !strings.Contains(tt.name, "disk") {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

// An address range in use is found by a child only: its words, with the flag, are the last line.
func TestRangeInUse(t *testing.T) {
	p := reachable(t)
	out, code := run(t, exec.Command(p.Bin(), append(append([]string{"up"}, p.Flags()...), "--pod-cidr", "127.0.0.0/16")...))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := lines[len(lines)-1]
	if code != 1 || !strings.Contains(last, "127.0.0.0/16 overlaps") || !strings.Contains(last, "--pod-cidr") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if left := p.Leftovers(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// reachable is a platform whose binary and directory every user can reach.
func reachable(t *testing.T) *platform.Platform {
	t.Helper()
	dir, err := os.MkdirTemp("", "sonagi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p, err := platform.New(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(p.Bin(), filepath.Join(dir, "sonagi")); err != nil {
		text, err := os.ReadFile(p.Bin())
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "sonagi"), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func run(t *testing.T, cmd *exec.Cmd) (string, int) {
	t.Helper()
	killer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer killer.Stop()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func take(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// mount makes the data directory a small disk.
func mount(t *testing.T, p *platform.Platform, options string) {
	t.Helper()
	if err := os.Mkdir(p.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	flags := uintptr(0)
	size, readOnly := strings.CutSuffix(options, ",ro")
	if readOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("disk", p.DataDir, "tmpfs", flags, size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p.DataDir, unix.MNT_DETACH) })
}

// list is what is in the data directory, and beside it.
func list(t *testing.T, p *platform.Platform) string {
	t.Helper()
	var names []string
	_ = filepath.WalkDir(filepath.Dir(p.DataDir), func(path string, _ os.DirEntry, _ error) error {
		names = append(names, strings.TrimPrefix(path, filepath.Dir(p.DataDir)))
		return nil
	})
	return strings.Join(names, " ")
}

// A disk that fills stops what writes, and nothing else; once there is room, all goes on.
func TestDiskFillsWhileRunning(t *testing.T) {
	p := reachable(t)
	mount(t, p, "size=1400m")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			p.PrintLogs()
		}
		if out, err := p.Sonagi(ctx, "down"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		p.Crash()
	})
	ctx := t.Context()
	if err := p.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.DeployTool(ctx, "warm"); err != nil {
		t.Fatal(err)
	}
	if err := p.Serve(ctx, "warm", 1); err != nil {
		t.Fatal(err)
	}
	load := p.Load(p.Host("warm", "default"), "/", 4)
	ballast := filepath.Join(p.DataDir, "ballast")
	fill(t, ballast)

	// Whatever is tried, the answer is an error that says why, or success; the load goes on.
	var said string
	for i := range 20 {
		out, err := p.Kubectl(ctx, "create", "configmap", fmt.Sprint("big-", i), "--from-literal=a="+strings.Repeat("x", 100<<10))
		if err != nil {
			said = out
			break
		}
	}
	t.Logf("writing says: %s", strings.TrimSpace(said))
	fill(t, ballast)
	after := load.Count() + 300
	platform.Eventually(t, time.Minute, func() error {
		if n := load.Count(); n < after {
			return fmt.Errorf("%d of %d answers", n, after)
		}
		return nil
	})
	t.Logf("up says: %s", tail(p.Output()))

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	platform.Eventually(t, time.Minute, func() error {
		_, err := p.Kubectl(ctx, "create", "configmap", "small", "--from-literal=a=b")
		return err
	})
	if err := p.Serve(ctx, "later", 1); err != nil {
		t.Error(err)
	}
	all := load.Stop()
	for _, failed := range all.Failed() {
		t.Errorf("of %d requests failed %s", len(all), failed)
	}
	t.Logf("%d requests, the longest %s", len(all), all.Percentile(100))
}

func tail(text string) string { return text[max(0, len(text)-600):] }

// fill writes until nothing is free.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10} {
		block := make([]byte, size)
		for err == nil {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
}
