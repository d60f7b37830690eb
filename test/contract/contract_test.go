// SPDX-License-Identifier: Apache-2.0

// Package contract holds what an app finds when it runs to Knative's runtime
// contract: its environment, files, limits, protocols, headers and probes.
package contract

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

var errNotYet = errors.New("not yet")

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

func newSpace(t *testing.T, name string) *platform.Space {
	t.Helper()
	if err := app(); err != nil {
		t.Fatal(err)
	}
	return p.Space(t, name)
}

// A world is what the app says about where it runs.
type world struct {
	Args, Env, Mounts []string
	UID, EUID, GID    int
	Groups            []int
	PID               int
	CWD, Host, Status string
	StdinEnds         bool
	Paths             map[string]found
}

type found struct {
	Error, Kind, Mode, Link, Text, Read, Write string
	Owner                                      [2]uint32
}

// inside asks a service what it finds at paths.
func inside(s *platform.Space, service string, paths ...string) (w world) {
	s.Tells(service, "/inside?path="+strings.Join(paths, "&path="), &w)
	return w
}

func (w world) env(name string) string {
	for _, kv := range w.Env {
		if key, value, _ := strings.Cut(kv, "="); key == name {
			return value
		}
	}
	return "(not set)"
}

func (w world) want(t *testing.T, env map[string]string) {
	t.Helper()
	for name, want := range env {
		if got := w.env(name); got != want {
			t.Errorf("$%s is %q, want %q", name, got, want)
		}
	}
}

func matches(t *testing.T, what, got, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(got) {
		t.Errorf("%s is %q, want %s", what, got, pattern)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "environment")
	s.Deploy(platform.Service{Name: "web", Env: map[string]string{"OWN": "value", "TWICE": "$(OWN)-$(OWN)", "KEPT": "$$(OWN)"}})
	s.Deploy(platform.Service{Name: "port", Box: "ports: [{containerPort: 9123}]"})
	s.ServiceReady("web")
	s.ServiceReady("port")
	w := inside(s, "web")
	w.want(t, map[string]string{"PORT": "8080", "K_SERVICE": "web", "K_CONFIGURATION": "web", "K_REVISION": "web-00001", "OWN": "value", "TWICE": "value-value", "KEPT": "$(OWN)"})
	for _, kv := range w.Env {
		if strings.Contains(kv, "_SERVICE_HOST=") && !strings.HasPrefix(kv, "KUBERNETES_") {
			t.Errorf("service links are off by default, and yet there is %s", kv)
		}
	}
	inside(s, "port").want(t, map[string]string{"PORT": "9123", "K_SERVICE": "port"})
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "files")
	s.Serves(platform.Service{Name: "web"})
	devices := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"}
	links := map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"}
	w := inside(s, "web", append(devices, "/tmp", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/console", "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1",
		"/dev/shm", "/dev/mqueue", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/proc/sys/kernel/hostname", "/proc/sys", "/proc/sysrq-trigger", "/proc/kcore", "/sys/fs/cgroup", "/sys/kernel", "/")...)
	for _, path := range devices {
		if f := w.Paths[path]; f.Error != "" || !strings.HasPrefix(f.Mode, "Dc") || f.Read != "" && path != "/dev/tty" || f.Write != "" && path != "/dev/tty" {
			t.Errorf("%s: %+v", path, f)
		}
	}
	for path, want := range links {
		if f := w.Paths[path]; f.Link != want || f.Error != "" {
			t.Errorf("%s leads to %q (%s), want %q", path, f.Link, f.Error, want)
		}
	}
	for path, want := range map[string]string{
		"/tmp": `directory dtrwxrwxrwx  $`, "/dev/console": "^stat /dev/console: no such file", "/dev/shm": `directory dtrwxrwxrwx  $`,
		"/proc/self/fd": "directory", "/etc/resolv.conf": "file -rw-r--r--", "/etc/hosts": "file -rw-r--r--", "/etc/hostname": "file -rw-r--r--",
		"/proc/sys/kernel/hostname": "permission denied|read-only", "/proc/sysrq-trigger": "permission denied|read-only|no such file", "/proc/kcore": "file|Dc|permission denied",
		"/sys/kernel": "directory .*(permission denied|read-only)", "/sys/fs/cgroup": "directory .*(permission denied|read-only)",
	} {
		f := w.Paths[path]
		matches(t, path, f.Error+f.Kind+" "+f.Mode+" "+f.Read+" "+f.Write, want)
	}
	if text := w.Paths["/etc/resolv.conf"].Text; !strings.Contains(text, "search files.svc.cluster.local svc.cluster.local cluster.local") || !strings.Contains(text, "nameserver ") {
		t.Errorf("/etc/resolv.conf: %s", text)
	}
	if text := w.Paths["/etc/hosts"].Text; !strings.Contains(text, "127.0.0.1\tlocalhost") || !strings.Contains(text, w.Host) {
		t.Errorf("/etc/hosts: %s", text)
	}
	if !w.StdinEnds {
		t.Error("standard input does not end")
	}
	if !strings.HasPrefix(w.Host, "web-00001-deployment-") {
		t.Errorf("the host's name is %q", w.Host)
	}
	if w.PID != 1 {
		t.Errorf("the app is process %d", w.PID)
	}
}

func TestWhoAndWhere(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "whoandwhere")
	for _, k := range []platform.Service{
		{Name: "plain"},
		{Name: "user", Box: "workingDir: /\nsecurityContext: {runAsUser: 2020, runAsGroup: 3030}"},
		{Name: "directory", Box: "workingDir: /tmp"},
		{Name: "command", Box: "command: [/ko-app/app]\nargs: [one, 'two three', $(OWN)]", Env: map[string]string{"OWN": "four"}},
		{Name: "arguments", Box: "args: [five]"},
	} {
		s.Deploy(k)
	}
	for _, tt := range []struct {
		service  string
		uid, gid int
		cwd      string
		args     []string
	}{
		{"plain", 65532, 65532, "/", []string{"/ko-app/app"}},
		{"user", 2020, 3030, "/", []string{"/ko-app/app"}},
		{"directory", 65532, 65532, "/tmp", []string{"/ko-app/app"}},
		{"command", 65532, 65532, "/", []string{"/ko-app/app", "one", "two three", "four"}},
		{"arguments", 65532, 65532, "/", []string{"/ko-app/app", "five"}},
	} {
		s.ServiceReady(tt.service)
		w := inside(s, tt.service)
		if w.UID != tt.uid || w.EUID != tt.uid || w.GID != tt.gid || w.CWD != tt.cwd || !slices.Equal(w.Args, tt.args) {
			t.Errorf("%s: user %d (%d), group %d, in %s, arguments %q", tt.service, w.UID, w.EUID, w.GID, w.CWD, w.Args)
		}
		matches(t, tt.service+": capabilities in effect", w.Status, `CapEff:\s+0000000000000000`)
		matches(t, tt.service+": seccomp", w.Status, `Seccomp:\s+[02]`)
	}
}

func TestControlGroups(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "controlgroups")
	s.Serves(platform.Service{Name: "web", Box: "resources: {requests: {cpu: 125m, memory: 64Mi}, limits: {cpu: '1', memory: 128Mi}}"})
	const v1, v2 = "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"
	w := inside(s, "web", v1, v2, "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "/sys/fs/cgroup/cpu/cpu.shares", "/sys/fs/cgroup/cgroup.controllers")
	read := func(path string) string {
		f := w.Paths[path]
		if f.Error != "" || f.Write == "" {
			t.Errorf("%s: %q; writable: %t", path, f.Error, f.Write == "")
		}
		return strings.TrimSpace(f.Text)
	}
	if w.Paths["/sys/fs/cgroup/cgroup.controllers"].Error == "" {
		matches(t, "memory.max", read(v2), "^134217728$")
		matches(t, "cpu.max", read("/sys/fs/cgroup/cpu.max"), "^100000 100000$")
	} else {
		matches(t, "memory.limit_in_bytes", read(v1), "^134217728$")
		matches(t, "cpu.shares", read("/sys/fs/cgroup/cpu/cpu.shares"), "^128$")
		if quota, period := read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"); quota != period {
			t.Errorf("processor time is %s of %s", quota, period)
		}
	}
	if !slices.ContainsFunc(w.Mounts, func(m string) bool { return strings.Contains(m, " /sys/fs/cgroup ") }) {
		t.Error("no mount at /sys/fs/cgroup")
	}
}
