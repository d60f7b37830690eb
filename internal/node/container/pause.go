// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// pauseInit is the order to be nothing but the first of a PID namespace.
const pauseInit = "pause"

// nobody is whom a pause runs as.
const nobody = 65535

// pause turns this process into one that only reaps. Whoever shares its PID
// namespace finds nothing in it: no capability, no user, and an empty,
// read-only file system as root.
func pause(o order) error {
	answer := done
	err := o.enterPause()
	if err != nil {
		answer = err.Error()
	}
	if _, werr := unix.Write(controlFD, []byte(answer)); err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for s := range signals {
		if s != unix.SIGCHLD {
			os.Exit(0)
		}
		for {
			var status syscall.WaitStatus
			if pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
	return nil
}

func (o order) enterPause() error {
	for _, tasks := range o.Tasks {
		if err := writeFile(tasks, "0"); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", o.Stage.Dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil {
		return err
	}
	if err := unix.Chdir(o.Stage.Dir); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	// Changing all IDs from 0 drops all capabilities, of every thread.
	if err := syscall.Setgroups(nil); err != nil {
		return os.NewSyscallError("setgroups", err)
	}
	if err := syscall.Setgid(nobody); err != nil {
		return os.NewSyscallError("setgid", err)
	}
	if err := syscall.Setuid(nobody); err != nil {
		return os.NewSyscallError("setuid", err)
	}
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// pause makes the box one that holds a PID namespace.
func (b *box) pause(resources func() error) error {
	var err error
	if b.stdio, _, err = openStdio(b.dir, &Spec{ID: b.record.Spec.ID, TTY: true}, b.host.keeper); err != nil {
		return err
	}
	o := order{Init: pauseInit, Stage: &stage{Dir: b.host.stageRoot}}
	if err := b.breathe(&o, &initConfig{}); err != nil {
		return err
	}
	saved := later(b.save)
	err = b.blank.order(o, nil)
	if err == nil {
		err = b.blank.awaitDone()
	}
	if serr := saved(); err == nil {
		err = serr
	}
	if err == nil {
		err = resources()
	}
	return err
}
