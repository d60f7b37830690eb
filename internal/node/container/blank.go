// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// initRole is the argument with which this binary becomes a blank.
const initRole = "container-init"

// A blank is a process that will be the first of a container, or one more in
// it, but does not know of which yet: booted, in a new PID namespace, waiting
// for its order. A few are made ahead of need, because booting one costs more
// than all that is left to do for a container.
type blank struct {
	process *os.Process
	control *os.File // a sequenced packet socket; when it closes, a waiting blank ends
}

// placement says where a blank is born.
type placement struct {
	pidNS  string   // path of a PID namespace, HostNamespace, or empty for a new one
	pidFD  *os.File // or the pidfd of a process whose PID namespace to join
	cgroup *os.File // cgroup v2 directory
}

func (p *placement) close() {
	if p.cgroup != nil {
		_ = p.cgroup.Close()
	}
}

// nursery makes blanks, and keeps some.
type nursery struct {
	exe   string
	log   *os.File
	mu    sync.Mutex
	ready []*blank
	keep  int
}

// take returns a blank for placement p, from those made ahead if one fits.
func (n *nursery) take(p placement) (*blank, error) {
	if p == (placement{}) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for len(n.ready) > 0 {
			b := n.ready[0]
			n.ready = n.ready[1:]
			if b.process.Signal(syscall.Signal(0)) == nil {
				return b, nil
			}
			b.discard()
		}
	}
	return n.spawn(p)
}

// fill makes blanks until there are as many ready as are to be kept.
func (n *nursery) fill() error {
	for {
		n.mu.Lock()
		full := len(n.ready) >= n.keep
		n.mu.Unlock()
		if full {
			return nil
		}
		b, err := n.spawn(placement{})
		if err != nil {
			return err
		}
		n.mu.Lock()
		n.ready = append(n.ready, b)
		n.mu.Unlock()
	}
}

// empty ends all blanks that wait, and keeps none from now on.
func (n *nursery) empty() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keep = 0
	for _, b := range n.ready {
		b.discard()
	}
	n.ready = nil
}

// spawn starts a blank from a thread of its own: a thread that joined
// another PID namespace is good for nothing else afterwards, and ends with
// its goroutine.
func (n *nursery) spawn(p placement) (*blank, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control-child")
	defer theirs.Close()

	cmd := exec.Command(n.exe, initRole)
	cmd.Args[0] = "sonagi"
	cmd.Env = []string{"GOMAXPROCS=2", "GOGC=off", "GODEBUG=asyncpreemptoff=1"} // it lives for some milliseconds of work
	cmd.Dir = "/"
	cmd.Stderr = n.log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(p.cgroup.Fd())
	}
	if p.pidNS == "" && p.pidFD == nil {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
		err = cmd.Start()
	} else {
		err = startIn(cmd, p)
	}
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start the first process: %w", err)
	}
	return &blank{process: cmd.Process, control: ours}, nil
}

// startIn starts cmd in the PID namespace that p names.
func startIn(cmd *exec.Cmd, p placement) error {
	if p.pidFD == nil && p.pidNS == HostNamespace {
		return cmd.Start()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: see spawn
		done <- func() error {
			ns := p.pidFD
			if ns == nil {
				f, err := os.Open(p.pidNS)
				if err != nil {
					return err
				}
				defer f.Close()
				ns = f
			}
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
				return os.NewSyscallError("setns", err)
			}
			return cmd.Start()
		}()
	}()
	return <-done
}

// order gives the blank its order, and the files that belong to it.
func (b *blank) order(o order, files []*os.File) error {
	body, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	return b.sendControl(body, files)
}

func (b *blank) sendControl(body []byte, files []*os.File) error {
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(fds(files)...)
	}
	if err := unix.Sendmsg(int(b.control.Fd()), body, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	return nil
}

// filter makes the waiting process install a seccomp program on all of its
// threads, and returns when it has.
func (b *blank) filter(program []byte) error {
	if err := b.sendControl(program, nil); err != nil {
		return err
	}
	if err := b.awaitDone(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// awaitDone waits until the process says that it has done what it was told.
func (b *blank) awaitDone() error {
	answer := make([]byte, 256)
	n, err := b.control.Read(answer)
	switch {
	case err != nil:
		return err
	case n == 0:
		return errors.New("the process ended")
	case string(answer[:n]) != done:
		return errors.New(string(answer[:n]))
	}
	return nil
}

// discard ends a blank that has no container.
func (b *blank) discard() {
	_ = b.control.Close()
	_ = b.process.Kill()
	_, _ = b.process.Wait()
}
