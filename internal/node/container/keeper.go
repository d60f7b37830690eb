// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// keeperRole is the argument with which this binary becomes the keeper. Its
// socket follows.
const keeperRole = "container-keeper"

// A keeper holds the files that would hang up on a container if the runtime
// died with them: masters of terminals, and ends of open inputs. It is a
// process of its own that does nothing else, and is there only while some
// container has such a file.
type keeper struct {
	exe    string
	socket string
	log    *os.File
	mu     sync.Mutex
}

// keepRequest is what the runtime asks a keeper: to put, get or drop.
type keepRequest struct {
	Op   string `json:"op"`
	Name string `json:"name"`
}

// put hands a copy of f to the keeper.
func (k *keeper) put(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.ask(keepRequest{"put", name}, f); err == nil {
		return nil
	}
	if err := k.start(); err != nil {
		return fmt.Errorf("start the keeper of open files: %w", err)
	}
	_, err := k.ask(keepRequest{"put", name}, f)
	return err
}

// get returns a copy of what was put.
func (k *keeper) get(name string) (*os.File, error) {
	files, err := k.ask(keepRequest{Op: "get", Name: name})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		closeAll(files)
		return nil, fmt.Errorf("%s is not kept", name)
	}
	defer closeAll(files)
	return pollable(files[0])
}

// drop forgets what was put. Where there is no keeper, nothing is kept.
func (k *keeper) drop(name string) { _, _ = k.ask(keepRequest{Op: "drop", Name: name}) }

func (k *keeper) ask(r keepRequest, files ...*os.File) ([]*os.File, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: k.socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := send(c, r, files...); err != nil {
		return nil, err
	}
	var out reply
	return receive(c, &out)
}

func (k *keeper) start() error {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(k.exe, keeperRole, k.socket)
	cmd.Args[0] = "sonagi"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	cmd.Stderr = k.log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	_, err = ready.Read(make([]byte, 2))
	return err
}

// pollable returns a copy of f that reads and writes without a thread.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// keep is the keeper's process. It ends when it holds nothing any more.
func keep(socket string) error {
	_ = os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ready := os.NewFile(readyFD, "ready")
	_, _ = ready.Write([]byte("ok"))
	_ = ready.Close()
	held := map[string]*os.File{}
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := keepOne(c, held); err != nil && !errors.Is(err, net.ErrClosed) {
			slog.Warn("keeper of open files", "error", err)
		}
		if len(held) == 0 {
			return os.Remove(socket)
		}
	}
}

// keepOne answers one request. The runtime asks, so it is trusted to go on.
func keepOne(c *net.UnixConn, held map[string]*os.File) error {
	defer c.Close()
	var r keepRequest
	files, err := receive(c, &r)
	if err != nil {
		return err
	}
	if old := held[r.Name]; old != nil && r.Op != "get" {
		_ = old.Close()
		delete(held, r.Name)
	}
	if r.Op == "put" && len(files) == 1 {
		held[r.Name] = files[0]
		return send(c, reply{})
	}
	closeAll(files)
	if f := held[r.Name]; f != nil {
		return send(c, reply{}, f)
	}
	return send(c, reply{})
}
