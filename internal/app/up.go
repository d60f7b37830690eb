// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/sonagi/sonagi/internal/check"
	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/supervise"
)

// UpOptions are what one start of the platform is told beside its settings.
type UpOptions struct {
	Out             io.Writer
	Deploy          string // source directory to deploy on the first start; "" for none
	MergeKubeconfig bool   // add a context to the user's own kubeconfig
	PortGiven       bool   // the gateway's port was asked for, so no other will do
	SecurePortGiven bool   // likewise for HTTPS
}

// Up is the supervisor: it starts control and node and keeps them running until
// ctx ends. Both start at once: node needs the API only for its tables, and can
// make its network and open its image store meanwhile.
func Up(ctx context.Context, s Settings, o UpOptions) error {
	began := time.Now()
	if err := check.All(check.Machine(s.DataDir)); err != nil {
		return err
	}
	_, err := os.Stat(s.DataDir)
	fresh := errors.Is(err, fs.ErrNotExist)
	held, err := lock(s)
	if err != nil {
		return err
	}
	defer held.Close()
	view := newProgress(o.Out, began)
	s, files, err := prepare(ctx, s, o, view)
	if err != nil {
		view.done()
		if fresh { // what was refused leaves nothing
			err = errors.Join(err, os.RemoveAll(s.DataDir))
		}
		return err
	}
	defer closeAll(files)
	control, node, err := openLogs(s)
	if err != nil {
		return err
	}
	defer closeAll([]*os.File{control, node})
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	args := func(role string) []string { return []string{"run", role, "--data-dir", s.DataDir} }
	children := []supervise.Child{
		{Name: "control", Args: args("control"), Log: control, Grace: 20 * time.Second},
		{Name: "node", Args: args("node"), Log: node, Files: files, Grace: 40 * time.Second},
	}

	state := State{Pid: os.Getpid(), Since: began, Children: map[string]*Process{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up, nodeEnd := false, ""
	var greeted chan struct{}
	err = supervise.Run(ctx, exe, children, func(e supervise.Event) {
		state.note(e)
		if err := state.save(s); err != nil {
			view.line("! the state file could not be written: %v", err)
		}
		if e.Exited && e.Child == "node" {
			nodeEnd = e.Error
		}
		if !up {
			view.show(e)
		} else if e.Exited && ctx.Err() == nil {
			view.line("! %s ended (%s) and is being started again", e.Child, e.Error)
		}
		if !up && state.ready(len(children)) {
			up = true
			view.done()
			greeted = make(chan struct{})
			go func() {
				defer close(greeted)
				if err := greet(ctx, s, o, view); err != nil && ctx.Err() == nil {
					view.line("! %v", err)
				}
				debug.FreeOSMemory() // from here on the supervisor only waits
			}()
		}
	})
	view.done()
	if greeted != nil {
		<-greeted
	}
	// A node that was told to end has removed all of its own.
	if nodeEnd != context.Canceled.Error() {
		err = errors.Join(err, cleanUp(context.WithoutCancel(ctx), s))
	}
	return hint(s, err)
}

// prepare looks for what would make the start fail, and returns the settings with
// the ports that were found, and the gateway's sockets.
func prepare(ctx context.Context, s Settings, o UpOptions, view *progress) (Settings, []*os.File, error) {
	if err := endOrphans(ctx, s); err != nil {
		return s, nil, err
	}
	if err := os.MkdirAll(s.Path("images"), 0o700); err != nil {
		return s, nil, fmt.Errorf("data directory: %w", err)
	}
	if err := image.Check(s.Path("images")); err != nil {
		return s, nil, err
	}
	s, err := choosePorts(s, o, view)
	if err != nil {
		return s, nil, err
	}
	if err := s.Save(); err != nil {
		return s, nil, err
	}
	// Before the children, because node may need its credentials before control is up.
	certificates, err := pki.Ensure(s.Path("pki"), s.certificates())
	if err != nil {
		return s, nil, err
	}
	if err := s.publishCA(certificates); err != nil {
		return s, nil, err
	}
	files, err := listeners(s)
	return s, files, err
}

// hint adds to a start that failed where more can be read.
func hint(s Settings, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w (more in %s)", err, s.Path("logs"))
}

// endOrphans ends the children of a supervisor that was killed: they see it on
// their lifeline and leave, and only a hanging one has to be killed.
func endOrphans(ctx context.Context, s Settings) error {
	last, err := ReadState(s)
	if err != nil {
		return nil // no earlier start, or nothing that can be read
	}
	processes := maps.Clone(last.Children)
	if processes == nil {
		processes = map[string]*Process{}
	}
	processes["supervisor"] = &Process{Pid: last.Pid} // its lock goes a moment before its ports
	for name, p := range processes {
		if !isOurs(p.Pid, name) {
			continue
		}
		soon, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := gone(soon, p.Pid)
		cancel()
		if err == nil {
			continue
		}
		if proc, err := os.FindProcess(p.Pid); err == nil {
			_ = proc.Kill()
		}
		after, cancel := context.WithTimeout(ctx, 3*time.Second)
		err = gone(after, p.Pid)
		cancel()
		if err != nil {
			return fmt.Errorf("%s of an earlier start: %w", name, err)
		}
	}
	return nil
}

// publishCA puts the authority of services where everybody on this machine may read it.
func (s Settings) publishCA(files *pki.Files) error {
	text, err := os.ReadFile(files.ServicesCA.Cert)
	if err != nil {
		return fmt.Errorf("authority of services: %w", err)
	}
	return writeFile(s.ServicesCA(), text, 0o644)
}

// choosePorts checks that the ports can be had. Only the gateway's may move, and
// say so, because they are those that other programs commonly hold.
func choosePorts(s Settings, o UpOptions, view *progress) (Settings, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	err := check.All([]check.Check{
		check.Port("Kubernetes API", "--api-port", netip.AddrPortFrom(loopback, s.APIPort)),
		check.Port("node's API", "--kubelet-port", netip.AddrPortFrom(loopback, s.KubeletPort)),
		check.Port("image registry", "--registry-port", netip.AddrPortFrom(loopback, s.RegistryPort)),
		check.Port("cluster-local gateway", "--internal-port", netip.AddrPortFrom(s.BridgeIP(), s.InternalPort)),
	})
	if err != nil {
		return s, err
	}
	const http, https = 8080, 8443
	s.GatewayPort, err = s.choosePort("gateway", "--port", s.GatewayPort, http, o.PortGiven, view)
	if err != nil {
		return s, err
	}
	s.SecurePort, err = s.choosePort("gateway's HTTPS", "--https-port", s.SecurePort, https, o.SecurePortGiven, view)
	return s, err
}

// choosePort is the port that was asked for, or if it is taken and need not be that one, the
// next that is free from another on.
func (s Settings) choosePort(what, flag string, port, from uint16, given bool, view *progress) (uint16, error) {
	usable := func(port uint16) error {
		return check.Port(what, flag, netip.AddrPortFrom(netip.IPv4Unspecified(), port)).Run()
	}
	first := usable(port)
	if first == nil || given {
		return port, first
	}
	const tries = 100
	for next := from; next < from+tries; next++ {
		if next != s.InternalPort && next != s.GatewayPort && usable(next) == nil {
			view.line("port %d is taken by %s: the %s answers on port %d instead", port, check.Holder(port), what, next)
			return next, nil
		}
	}
	return port, first
}

// isOurs says whether pid is a child of an earlier supervisor in this role, and
// not a stranger that was given the same number. One that was killed a moment
// ago has no command line any more, but holds its ports still.
func isOurs(pid int, role string) bool {
	if pid <= 0 {
		return false
	}
	proc := "/proc/" + strconv.Itoa(pid)
	cmdline, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		return false
	}
	if len(cmdline) > 0 {
		return containsArgs(cmdline, "run", role)
	}
	name, _ := os.ReadFile(proc + "/comm")
	own, _ := os.ReadFile("/proc/self/comm")
	return bytes.Equal(name, own)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

var errNotUp = errors.New("sonagi does not run; start it with \"sonagi up\"")
