// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"
)

// Options of Launch.
type Options struct {
	Dir    string // state of the containers
	Socket string // where the runtime listens
	// Binary is the program that becomes the runtime, small.Binary's; this
	// process's own when empty. It must call reexec's hook.
	Binary []byte
}

// maxStartup is how long a runtime may take until it listens. It adopts
// containers before that.
const maxStartup = 30 * time.Second

// maxRuntimeLog bounds what the runtime has to say.
const maxRuntimeLog = 4 << 20

// Launch returns a client of the runtime on o.Socket, and starts that runtime
// when none answers: now, and again whenever it is found dead.
func Launch(ctx context.Context, o Options) (*Client, error) {
	l := &launcher{options: o}
	if len(o.Binary) > 0 {
		l.version = fmt.Sprintf("%x", sha256.Sum256(o.Binary))
	}
	c := &Client{socket: o.Socket, revive: l.revive}
	r, err := c.call(ctx, request{Op: "ping"})
	if err != nil || r.Version == l.version {
		return c, err
	}
	// A runtime of another build: its successor adopts the containers.
	if _, err := c.call(ctx, request{Op: "retire"}); err != nil {
		return nil, fmt.Errorf("retire the container runtime: %w", err)
	}
	return c, c.ping(ctx)
}

// A launcher starts runtimes, one at a time.
type launcher struct {
	options Options
	version string // of the binary: its hash
	mu      sync.Mutex
}

func (l *launcher) revive(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn, err := dial(ctx, l.options.Socket); err == nil {
		return conn.Close() // another call was faster
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := l.start(ctx)
	if err == nil {
		return nil
	}
	if conn, again := dial(ctx, l.options.Socket); again == nil {
		return conn.Close() // another process was faster
	}
	return err
}

func (l *launcher) start(ctx context.Context) error {
	if err := os.MkdirAll(l.options.Dir, 0o711); err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.options.Socket), 0o700); err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	log, err := l.openLog()
	if err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	defer log.Close()
	exe, err := l.executable()
	if err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	defer exe.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), runtimeRole, l.options.Dir, l.options.Socket)
	cmd.Args[0] = "sonagi"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), versionVariable + "=" + l.version}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return fmt.Errorf("start the container runtime: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	return l.await(ctx, ready)
}

// await waits until the runtime says that it listens.
func (l *launcher) await(ctx context.Context, ready *os.File) error {
	_ = ready.SetReadDeadline(time.Now().Add(maxStartup))
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })()
	_, err := ready.Read(make([]byte, 2))
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the container runtime ended at once; %s says why", l.logPath())
	}
	if err != nil {
		return fmt.Errorf("wait for the container runtime: %w", errors.Join(ctx.Err(), err))
	}
	return nil
}

func (l *launcher) logPath() string { return filepath.Join(l.options.Dir, "runtime.log") }

func (l *launcher) openLog() (*os.File, error) {
	flags := os.O_CREATE | os.O_APPEND | os.O_WRONLY
	if info, err := os.Stat(l.logPath()); err == nil && info.Size() > maxRuntimeLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(l.logPath(), flags, 0o600)
}

// executable opens the binary of the runtime. A small one goes into memory
// and is sealed there, so that nothing can change what containers start from.
func (l *launcher) executable() (*os.File, error) {
	if len(l.options.Binary) == 0 {
		f, err := os.OpenFile("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return outOfTheWay(f)
	}
	f, err := exeseal.CloneBinary(bytes.NewReader(l.options.Binary), int64(len(l.options.Binary)), "sonagi-runtime", l.options.Dir)
	if err != nil {
		return nil, err
	}
	return outOfTheWay(f)
}

// outOfTheWay moves a file to a number that the start of a child does not use
// for the child's own files: see golang.org/issue/61751.
func outOfTheWay(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
