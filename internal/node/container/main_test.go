// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sonagi/sonagi/internal/node/container"
	_ "github.com/sonagi/sonagi/internal/node/container/reexec"
	"github.com/sonagi/sonagi/internal/node/container/small"
)

// busybox is the shell and tools of the test containers.
const busybox = "/bin/busybox"

// A lab is a runtime of its own, with what containers need.
type lab struct {
	t      testing.TB
	dir    string
	client *container.Client

	mu   sync.Mutex
	seen map[string]container.Event
	news chan struct{}
	n    int
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("containers need busybox-static")
	}
	l := &lab{t: t, dir: t.TempDir(), seen: map[string]container.Event{}, news: make(chan struct{}, 1)}
	l.client = l.launch()
	ctx, cancel := context.WithCancel(t.Context())
	l.watch(ctx)
	t.Cleanup(func() {
		cancel()
		l.shutdown()
	})
	return l
}

// options are those of Launch. CONTAINER_TEST_SELF runs the test binary as the
// runtime: with it, -race sees the runtime too.
func (l *lab) options() container.Options {
	o := container.Options{Dir: filepath.Join(l.dir, "containers"), Socket: filepath.Join(l.dir, "run", "runtime.sock")}
	if os.Getenv("CONTAINER_TEST_SELF") == "" {
		o.Binary = small.Binary()
	}
	return o
}

func (l *lab) launch() *container.Client {
	l.t.Helper()
	c, err := container.Launch(l.t.Context(), l.options())
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(l.dir, "containers", "runtime.log"))
		l.t.Fatalf("launch: %v\n%s", err, log)
	}
	return c
}

func (l *lab) shutdown() {
	c, err := container.Launch(context.Background(), l.options())
	if err == nil {
		err = c.Shutdown(context.Background())
	}
	if err != nil {
		l.t.Errorf("shutdown: %v", err)
	}
	log, _ := os.ReadFile(filepath.Join(l.dir, "containers", "runtime.log"))
	if l.t.Failed() || bytes.Contains(log, []byte("DATA RACE")) || bytes.Contains(log, []byte("panic")) {
		l.t.Errorf("runtime log:\n%s", log)
	}
	for _, root := range []string{"cpu", "memory", "pids", "devices", "freezer", "systemd", "."} {
		left, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", root, l.parent(), "*"))
		for _, dir := range left {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				l.t.Errorf("cgroup left behind: %s", dir)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), l.dir) {
		l.t.Errorf("mount left behind below %s", l.dir)
	}
}

func (l *lab) parent() string { return "/sonagi-test-" + filepath.Base(filepath.Dir(l.dir)) }

// watch keeps the events that come.
func (l *lab) watch(ctx context.Context) {
	events, err := l.client.Watch(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	go func() {
		for e := range events {
			l.mu.Lock()
			l.seen[e.ID] = e
			close(l.news)
			l.news = make(chan struct{})
			l.mu.Unlock()
		}
	}()
}

// exit waits for the end of a container.
func (l *lab) exit(id string) container.Event {
	l.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		e, ok := l.seen[id]
		news := l.news
		l.mu.Unlock()
		if ok {
			return e
		}
		select {
		case <-news:
		case <-limit:
			l.t.Fatalf("container %s has not ended", id)
		}
	}
}

// rootfs makes a root file system with busybox.
func (l *lab) rootfs() string {
	l.t.Helper()
	l.n++
	root := filepath.Join(l.dir, fmt.Sprintf("rootfs%d", l.n))
	for _, dir := range []string{"bin", "etc", "tmp", "data", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
	must(l.t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	must(l.t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"), 0o644))
	if err := os.Link(busybox, filepath.Join(root, "bin/busybox")); err != nil {
		out, err := exec.Command("cp", busybox, filepath.Join(root, "bin/busybox")).CombinedOutput()
		if err != nil {
			l.t.Fatalf("%v: %s", err, out)
		}
	}
	for _, name := range strings.Fields("sh cat echo ls sleep id env stat mount ps kill hostname head dd yes true false touch stty tty tr pwd printf mknod wc grep mkdir chmod unshare seq") {
		must(l.t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
	}
	return root
}

// spec is a container that runs a shell script.
func (l *lab) spec(script string) container.Spec {
	l.n++
	id := fmt.Sprintf("c%d", l.n)
	return container.Spec{
		ID: id, RootFS: l.rootfs(), Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/sbin"},
		CgroupParent: l.parent() + "/pod", Hostname: "box", LogPath: filepath.Join(l.dir, "logs", id+".log"),
	}
}

func (l *lab) run(s container.Spec) container.Started {
	l.t.Helper()
	must(l.t, l.client.Create(l.t.Context(), s))
	started, err := l.client.Start(l.t.Context(), s.ID)
	must(l.t, err)
	return started
}

// output runs a container to its end and returns its log.
func (l *lab) output(s container.Spec) (string, container.Event) {
	l.t.Helper()
	l.run(s)
	e := l.exit(s.ID)
	return l.log(s), e
}

func (l *lab) log(s container.Spec) string {
	l.t.Helper()
	text, err := os.ReadFile(s.LogPath)
	must(l.t, err)
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			l.t.Fatalf("log line %q", line)
		}
		if parts[2] == "P" {
			parts[3] = strings.TrimSuffix(parts[3], "\n")
		}
		out.WriteString(parts[3])
	}
	return out.String()
}

// exec runs a command in a container and returns what it printed.
func (l *lab) exec(id, script string) (string, int) {
	l.t.Helper()
	var out lockedBuffer
	code, err := l.client.Exec(l.t.Context(), id, container.ExecSpec{Args: []string{"sh", "-c", script}}, container.Streams{Out: &out, Err: &out})
	must(l.t, err)
	return out.String(), code
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// netNS makes a network namespace and returns its path.
func netNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	must(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the namespace
		done <- errors.Join(unix.Unshare(unix.CLONE_NEWNET), unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
	}()
	must(t, <-done)
	t.Cleanup(func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// lockedBuffer is a buffer for several writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
