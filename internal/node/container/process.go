// SPDX-License-Identifier: Apache-2.0

package container

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An extra process is one more in a container.
type extra struct {
	blank   *blank
	console *os.File
}

// exec starts one more process. files are its standard streams, of which
// those that are nil read nothing and drop everything.
func (b *box) exec(spec *ExecSpec, files [3]*os.File) (*extra, error) {
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return nil, &StartError{Reason: "StartError", Message: "no command specified"}
	}
	b.mu.Lock()
	pid, state, s := b.record.Status.Pid, b.record.Status.State, b.record.Spec
	b.mu.Unlock()
	if state != Running || s.Pause {
		return nil, ErrNotRunning
	}
	init, err := b.openInit(pid)
	if err != nil {
		return nil, err
	}
	defer init.Close()
	p, err := b.host.plan(&s, b.manager)
	if err != nil {
		return nil, err
	}
	e, err := b.launch(&s, spec, p, init, files)
	if err != nil {
		return nil, startError(err)
	}
	return e, nil
}

// openInit opens the first process, and makes sure that it is the one.
func (b *box) openInit(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, ErrNotRunning
	}
	if at, err := startTime(pid); err != nil || at != b.record.StartTime {
		_ = unix.Close(fd)
		return nil, ErrNotRunning
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

func (b *box) launch(s *Spec, spec *ExecSpec, p *plan, init *os.File, files [3]*os.File) (*extra, error) {
	o := order{Init: "setns", Console: spec.TTY, Filter: p.filter != nil,
		Join: []int{unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}}
	at := placement{pidFD: init}
	if err := b.host.cgroup(b.manager, &o, &at); err != nil {
		return nil, err
	}
	defer at.close()
	if b.host.groups.unified {
		o.Join[0] |= unix.CLONE_NEWCGROUP
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	streams := []*os.File{cmp.Or(files[0], null), cmp.Or(files[1], null), cmp.Or(files[2], null), null}
	c := execConfig(s, spec, p)
	bl, err := b.host.nursery.take(at)
	if err != nil {
		return nil, err
	}
	console, err := b.host.handshake(bl, o, c, streams, []*os.File{init}, func() error {
		setOOMScore(bl.process.Pid, s)
		if p.filter == nil {
			return nil
		}
		// There is no gate to wait at, so the filter comes before privileges
		// are dropped, as libcontainer itself does it.
		return bl.filter(p.filter)
	})
	if err != nil {
		bl.discard()
		return nil, err
	}
	return &extra{bl, console}, nil
}

func execConfig(s *Spec, spec *ExecSpec, p *plan) *initConfig {
	c := *p.config
	c.Args, c.CreateConsole = spec.Args, spec.TTY
	c.Env = slices.Concat(s.Env, spec.Env)
	c.Cwd = cmp.Or(spec.Cwd, c.Cwd)
	if spec.User != nil {
		c.UID, c.GID, c.AdditionalGroups = int(spec.User.UID), int(spec.User.GID), ints(spec.User.Groups)
	}
	return &c
}

// wait reaps the process and returns its exit code.
func (e *extra) wait() int {
	state, err := e.blank.process.Wait()
	_ = e.blank.control.Close()
	if e.console != nil {
		_ = e.console.Close()
	}
	if err != nil {
		return UnknownExitCode
	}
	return exitOf(state.Sys().(syscall.WaitStatus)).Code
}

func (e *extra) kill() { _ = e.blank.process.Kill() }

// adopt takes over what a runtime before this one left in dir.
func adopt(h *host, dir string, r record) (*box, error) {
	b := &box{host: h, dir: dir, record: r, ended: make(chan struct{})}
	var err error
	if b.manager, err = h.groups.open(r.Spec.CgroupParent, r.Spec.ID, h.groups.resources(&r.Spec)); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	if r.Status.State == Exited {
		close(b.ended)
		return b, nil
	}
	streams := r.Spec
	streams.TTY = streams.TTY || streams.Pause // a pause has none
	if b.stdio, err = reopenStdio(dir, &streams, h.keeper); err != nil {
		return nil, fmt.Errorf("standard streams: %w", err)
	}
	b.stdio.pump(h.buffers)
	if err := b.find(); err != nil {
		go b.end(Exit{Code: UnknownExitCode, Unknown: true})
		return b, nil
	}
	if b.unstarted() {
		// Its gate is lost, so it can never run. Whoever made it makes it again.
		b.killed = true
		_ = unix.PidfdSendSignal(int(b.pidfd.Fd()), unix.SIGKILL, nil, 0)
	} else if b.record.Status.State == Created {
		b.record.Status.State, b.record.Status.StartedAt = Running, time.Now()
	}
	go b.watch()
	return b, nil
}

// find opens the process of an adopted container.
func (b *box) find() error {
	fd, err := unix.PidfdOpen(b.record.Status.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	b.pidfd = os.NewFile(uintptr(fd), "pidfd")
	at, err := startTime(b.record.Status.Pid)
	if err == nil && at != b.record.StartTime {
		err = errors.New("its PID is another's now")
	}
	return err
}

// unstarted says that the process still is ours, not the container's program.
func (b *box) unstarted() bool {
	if b.record.Spec.Pause {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", b.record.Status.Pid))
	return err == nil && string(line) == "sonagi\x00"+initRole+"\x00"
}

// watch waits for the end of a process that is not our child.
func (b *box) watch() {
	raw, err := b.pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0
		})
	}
	if err != nil {
		b.host.log.Error("cannot watch an adopted container", "container", b.record.Spec.ID, "error", err)
		return
	}
	b.mu.Lock()
	killed := b.killed
	b.mu.Unlock()
	if killed { // there is nothing to be learned
		b.end(Exit{Code: 128 + int(syscall.SIGKILL), Signal: syscall.SIGKILL})
		return
	}
	b.end(exitOfStranger(b.pidfd))
}

// maxReap is how long the machine's first process may take to reap an orphan.
// A right exit code, late, serves better than an unknown one.
const maxReap = 5 * time.Second

// exitOfStranger asks the kernel how a process that is not our child ended.
// Kernels since 6.15 remember that for as long as a pidfd is open.
func exitOfStranger(pidfd *os.File) Exit {
	const (
		getInfo  = 0xc040ff0b // PIDFD_GET_INFO, with 64 bytes of struct pidfd_info
		infoExit = 1 << 3
	)
	// The end is known when the process that inherited it has reaped it.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: 0}}, int(maxReap.Milliseconds()))
	info := struct {
		mask, cgroup uint64
		ids          [11]uint32
		status       int32
	}{mask: infoExit}
	if err := ioctl(int(pidfd.Fd()), getInfo, &info); err != nil || info.mask&infoExit == 0 {
		return Exit{Code: UnknownExitCode, Unknown: true}
	}
	return exitOf(syscall.WaitStatus(info.status))
}

func ioctl[T any](fd int, request uintptr, arg *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}
