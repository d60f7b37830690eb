// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// A box is one container, as the runtime keeps it.
type box struct {
	host *host
	dir  string

	mu      sync.Mutex
	record  record
	manager cgroups.Manager
	blank   *blank   // of a container made by this runtime
	gate    *os.File // opening it lets a created container run
	pidfd   *os.File // of an adopted container
	stdio   *stdio
	oom     uint64        // OOM kills seen before the start
	killed  bool          // by us
	gone    bool          // removed: nothing is saved any more
	ended   chan struct{} // closed when it has exited and its end is recorded
}

// maxGate is how long a process may take from the gate to its program.
const maxGate = 10 * time.Second

// record is what is on disk of a box.
type record struct {
	Spec      Spec   `json:"spec"`
	Status    Status `json:"status"`
	StartTime uint64 `json:"startTime"` // of its process: see startTime
}

const recordFile = "state.json"

// host is what all boxes share.
type host struct {
	dir       string
	log       *slog.Logger
	groups    *hierarchies
	nursery   *nursery
	keeper    *keeper
	buffers   *buffers
	filters   filterCache
	tell      func(Event)
	initLog   *os.File
	stageRoot string
}

// filterCache keeps compiled seccomp programs: nearly all containers have
// the same. Profiles of users are read anew each time, as they may change.
type filterCache struct {
	mu    sync.Mutex
	known map[string][]byte
}

func (c *filterCache) program(name string, caps []string) ([]byte, error) {
	if name != "" && name != DefaultSeccomp {
		return seccompProgram(name, caps)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := strings.Join(slices.Sorted(slices.Values(caps)), " ")
	if p, ok := c.known[key]; ok {
		return p, nil
	}
	p, err := seccompProgram(name, caps)
	if err == nil {
		if c.known == nil || len(c.known) > 64 {
			c.known = map[string][]byte{}
		}
		c.known[key] = p
	}
	return p, err
}

// plan is a spec, resolved.
type plan struct {
	caps    []string
	devices []node
	stage   *stage
	filter  []byte
	config  *initConfig
}

func (h *host) plan(s *Spec, m cgroups.Manager) (*plan, error) {
	p := &plan{}
	var err error
	if p.caps, err = capabilitySet(s); err != nil {
		return nil, err
	}
	if p.devices, err = specNodes(s); err != nil {
		return nil, err
	}
	if !s.Privileged {
		if p.filter, err = h.filters.program(s.Seccomp, p.caps); err != nil {
			return nil, err
		}
	}
	all := append(defaultNodes(), p.devices...)
	if !s.shared() {
		p.stage = &stage{Dir: h.stageRoot, Nodes: all, ShmSize: s.shmSize(), Unified: h.groups.unified, Queues: s.IPCNS != HostNamespace}
		if !h.groups.unified {
			p.stage.Cgroups = visible(m)
		}
	}
	c, err := config(s, p.stage, p.caps, all)
	if err != nil {
		return nil, err
	}
	p.config = processConfig(s, c)
	return p, nil
}

func ints(in []uint32) []int {
	out := make([]int, len(in))
	for i, n := range in {
		out[i] = int(n)
	}
	return out
}

// newBox makes the directory of a container.
func newBox(h *host, spec Spec) (*box, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	b := &box{host: h, dir: filepath.Join(h.dir, spec.ID), ended: make(chan struct{})}
	b.record.Spec = spec
	b.record.Status = Status{ID: spec.ID, Labels: spec.Labels, State: Created, LogPath: spec.LogPath}
	if err := os.Mkdir(b.dir, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return b, nil
}

// create brings the container to the point where only its first instruction
// is missing.
func (b *box) create() (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() {
		if err != nil {
			b.undo()
		}
	}()
	spec := &b.record.Spec
	resources := b.host.groups.resources(spec)
	if b.manager, err = b.host.groups.open(spec.CgroupParent, spec.ID, resources); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if spec.Pause {
		return b.createPause(resources)
	}
	p, err := b.host.plan(spec, b.manager)
	if err != nil {
		return err
	}
	resources.Devices = deviceRules(spec, p.devices)
	// Beside what boot does first. Device rules are set in steps, of which the
	// first denies all, so nobody may be in the cgroup yet.
	grouped := later(func() error {
		if err := b.host.groups.create(b.manager); err != nil {
			return err
		}
		return b.host.groups.limit(b.manager, resources)
	})
	if err = b.boot(p, grouped); err != nil {
		_ = grouped() // undo must not race with it
		return startError(err)
	}
	b.stdio.pump(b.host.buffers)
	go b.wait()
	return nil
}

func (b *box) createPause(resources *cgroups.Resources) error {
	if err := b.host.groups.create(b.manager); err != nil {
		return err
	}
	resources.Devices = deviceRules(&b.record.Spec, nil)
	if err := b.pause(func() error { return b.host.groups.limit(b.manager, resources) }); err != nil {
		return startError(err)
	}
	go b.wait()
	return nil
}

// later runs do at once, and returns what waits for its outcome.
func later(do func() error) func() error {
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = do()
	}()
	return func() error {
		<-done
		return err
	}
}

// boot makes a blank into the container's process, up to the gate.
func (b *box) boot(p *plan, grouped func() error) error {
	spec := &b.record.Spec
	o := order{Init: "standard", Stage: p.stage, Filter: p.filter != nil, Console: spec.TTY, Unshare: unix.CLONE_NEWNS}
	theirs, err := b.open()
	defer closeAll(theirs)
	if err != nil {
		return err
	}
	joins, err := joinNamespaces(&o, spec)
	defer closeAll(joins)
	if err != nil {
		return err
	}
	if err := grouped(); err != nil {
		return err
	}
	if err := b.breathe(&o, p.config); err != nil {
		return err
	}
	saved := later(b.save) // while the process sets itself up
	console, err := b.host.handshake(b.blank, o, p.config, append(theirs[:3:3], b.gate), joins, func() error {
		setOOMScore(b.blank.process.Pid, spec)
		return nil
	})
	if err = errors.Join(err, saved()); err != nil {
		return err
	}
	if console != nil {
		b.stdio.setConsole(console)
	}
	if err := b.stdio.keepOpen(); err != nil {
		return err
	}
	if p.filter != nil {
		return b.blank.filter(p.filter)
	}
	return nil
}

// open makes the standard streams and the gate, and returns the container's
// ends of the streams.
func (b *box) open() (theirs []*os.File, err error) {
	if b.stdio, theirs, err = openStdio(b.dir, &b.record.Spec, b.host.keeper); err != nil {
		return nil, fmt.Errorf("standard streams: %w", err)
	}
	b.gate, err = makeGate(filepath.Join(b.dir, "gate"))
	return theirs, err
}

// breathe takes a blank for the container, and records which process it is.
func (b *box) breathe(o *order, c *initConfig) error {
	at := placement{pidNS: b.record.Spec.PIDNS}
	if err := b.host.cgroup(b.manager, o, &at); err != nil {
		return err
	}
	defer at.close()
	if b.host.groups.unified {
		c.Cgroup2Path = b.manager.Path("")
		o.Unshare |= unix.CLONE_NEWCGROUP
	}
	var err error
	if b.blank, err = b.host.nursery.take(at); err != nil {
		return err
	}
	b.record.Status.Pid = b.blank.process.Pid
	b.record.Status.CreatedAt = time.Now()
	b.record.StartTime, err = startTime(b.record.Status.Pid)
	return err
}

// cgroup says how a process gets into a cgroup: it is born there on v2, and
// enters by itself on v1.
func (h *host) cgroup(m cgroups.Manager, o *order, at *placement) error {
	if !h.groups.unified {
		o.Tasks = tasks(m)
		return nil
	}
	dir, err := os.Open(m.Path(""))
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	at.cgroup = dir
	return nil
}

// handshake gives the blank its order and follows it to the end of the
// protocol. files are its standard streams and its gate; for ready, see follow.
func (h *host) handshake(bl *blank, o order, c *initConfig, files, joins []*os.File, ready func() error) (*os.File, error) {
	ch, err := openChannels()
	if err != nil {
		return nil, err
	}
	defer ch.close()
	all := []*os.File{files[0], files[1], files[2], ch.initChild, ch.syncChild, h.initLog, files[3]}
	var terminal *os.File
	if o.Console {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socketpair", err)
		}
		terminal = os.NewFile(uintptr(pair[0]), "console")
		theirs := os.NewFile(uintptr(pair[1]), "console-child")
		defer terminal.Close()
		defer theirs.Close()
		all = append(all, theirs)
	}
	err = bl.order(o, append(all, joins...))
	ch.closeChild()
	if err != nil {
		return nil, err
	}
	if err := ch.follow(c, ready); err != nil {
		return nil, err
	}
	if terminal == nil {
		return nil, nil
	}
	return receiveConsole(terminal)
}

// receiveConsole takes the master of a terminal from the process that made it.
func receiveConsole(from *os.File) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	files, err := parseFiles(oob[:n])
	if err != nil || len(files) != 1 {
		closeAll(files)
		return nil, fmt.Errorf("receive terminal: %d files: %w", len(files), err)
	}
	defer closeAll(files)
	return pollable(files[0])
}

// makeGate makes the FIFO on which libcontainer waits before it runs the
// program. It is removed at once: who is to open it has it open already.
func makeGate(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o622); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	defer os.Remove(path)
	if err := os.Chmod(path, 0o622); err != nil { // whatever the umask: the container's user opens it
		return nil, err
	}
	return os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
}

func joinNamespaces(o *order, s *Spec) (files []*os.File, err error) {
	for _, n := range []struct {
		path string
		kind int
	}{{s.NetNS, unix.CLONE_NEWNET}, {s.IPCNS, unix.CLONE_NEWIPC}, {s.UTSNS, unix.CLONE_NEWUTS}} {
		switch n.path {
		case HostNamespace:
		case "":
			o.Unshare |= n.kind
		default:
			f, err := os.Open(n.path)
			if err != nil {
				return files, fmt.Errorf("namespace: %w", err)
			}
			files = append(files, f)
			o.Join = append(o.Join, n.kind)
		}
	}
	return files, nil
}

// setOOMScore asks for the score. Where lowering it needs a privilege that
// we lack, the container runs with the score it has.
func setOOMScore(pid int, s *Spec) {
	score := 0 // the runtime's own is no container's
	if s.OOMScoreAdj != nil {
		score = *s.OOMScoreAdj
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), fmt.Append(nil, score), 0)
}

func startError(err error) error {
	return &StartError{Reason: "StartError", Message: "unable to start container process: " + err.Error()}
}

// undo removes what create made.
func (b *box) undo() {
	if b.blank != nil {
		b.blank.discard()
		b.blank = nil
	}
	if b.stdio != nil {
		b.stdio.close()
	}
	if b.gate != nil {
		_ = b.gate.Close()
	}
	if b.manager != nil {
		_ = b.host.groups.killAll(b.manager)
		if err := b.host.groups.destroy(b.manager); err != nil {
			b.host.log.Warn("container that failed to start leaves its cgroup", "container", b.record.Spec.ID, "error", err)
		}
	}
	_ = os.RemoveAll(b.dir)
	b.record.Status.State = Exited
	close(b.ended)
}

// start lets the process run.
func (b *box) start() (Started, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.record.Status.State != Created || b.gate == nil && !b.record.Spec.Pause {
		return Started{}, fmt.Errorf("%w: it has been started before", ErrNotRunning)
	}
	b.oom = oomKills(b.manager)
	if err := b.host.groups.limit(b.manager, b.host.groups.cpu(&b.record.Spec)); err != nil {
		return Started{}, startError(err)
	}
	if b.gate != nil {
		if err := openGate(b.gate); err != nil {
			return Started{}, startError(err)
		}
		_ = b.gate.Close()
		b.gate = nil
	}
	now := time.Now()
	b.record.Status.State, b.record.Status.StartedAt = Running, now
	go func() { // not in the way of the answer: a created box with a running process is known for what it is
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.record.Status.State == Running {
			if err := b.save(); err != nil {
				b.host.log.Warn("container state not saved", "container", b.record.Spec.ID, "error", err)
			}
		}
	}()
	return Started{Pid: b.record.Status.Pid, At: now}, nil
}

// openGate opens the FIFO for reading and waits for the byte that the process
// writes once through: microseconds, so a blocked thread is the cheapest way.
func openGate(gate *os.File) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", gate.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	defer unix.Close(fd)
	for deadline := time.Now().Add(maxGate); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(maxGate.Milliseconds()))
		if err == unix.EINTR || err == nil && n == 0 {
			continue // as long as the process has not come, a read would say that it has gone
		}
		if err != nil {
			return fmt.Errorf("gate: %w", err)
		}
		if n, err := unix.Read(fd, make([]byte, 1)); n == 1 {
			return nil
		} else if err == nil {
			return errors.New("gate: the process ended before it began")
		}
	}
	return errors.New("gate: the process does not come")
}

// wait reaps the process of a container this runtime made.
func (b *box) wait() {
	state, err := b.blank.process.Wait()
	e := Exit{Code: UnknownExitCode, Unknown: true}
	if err == nil {
		ws := state.Sys().(syscall.WaitStatus)
		e = exitOf(ws)
	}
	b.end(e)
}

func exitOf(ws syscall.WaitStatus) Exit {
	if ws.Signaled() {
		return Exit{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
	}
	return Exit{Code: ws.ExitStatus()}
}

// end records that the first process is gone. What it leaves behind in the
// cgroup goes too: with a PID namespace of its own the kernel saw to that.
func (b *box) end(e Exit) {
	finished := time.Now()
	if b.record.Spec.PIDNS != "" {
		b.sweep()
	}
	b.stdio.finish()
	b.mu.Lock()
	e.OOMKilled = (e.Code != 0 || e.Unknown) && oomKills(b.manager) > b.oom
	b.record.Status.State, b.record.Status.FinishedAt, b.record.Status.Exit = Exited, finished, e
	b.record.Status.Pid = 0
	if err := b.save(); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.host.log.Warn("container end not saved", "container", b.record.Spec.ID, "error", err)
	}
	event := b.event()
	if b.blank != nil {
		_ = b.blank.control.Close()
	}
	close(b.ended)
	b.mu.Unlock()
	b.host.tell(event)
}

func (b *box) event() Event {
	s := b.record.Status
	return Event{ID: s.ID, Labels: s.Labels, FinishedAt: s.FinishedAt, Exit: s.Exit}
}

// sweep kills until nobody is left in the cgroup.
func (b *box) sweep() {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if err := b.host.groups.killAll(b.manager); err != nil {
			return
		}
		left, err := pids(b.manager)
		if err != nil || len(left) == 0 {
			return
		}
		// There is no event for the last process of a v1 cgroup; its pidfd is one.
		awaitExit(left[0], time.Second)
	}
}

// awaitExit waits for the end of any process.
func awaitExit(pid int, limit time.Duration) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
}

// signal sends sig to the first process.
func (b *box) signal(sig syscall.Signal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.record.Status.State == Exited {
		return ErrNotRunning
	}
	b.killed = b.killed || sig == syscall.SIGKILL
	var err error
	if b.pidfd != nil {
		err = unix.PidfdSendSignal(int(b.pidfd.Fd()), sig, nil, 0)
	} else {
		err = b.blank.process.Signal(sig)
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	return err
}

// kill ends every process and waits until they are gone.
func (b *box) kill() error {
	err := b.signal(syscall.SIGKILL)
	if err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	if b.record.Spec.PIDNS != "" {
		b.sweep()
	}
	select {
	case <-b.ended:
		return nil
	case <-time.After(200 * time.Millisecond):
	}
	if b.manager != nil {
		// The kernel kills the others of a PID namespace when the first is dead, and
		// that one may stand in a queue with thousands that fork.
		defer b.host.groups.hurry(b.manager)()
		b.sweep()
	}
	select {
	case <-b.ended:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("container %s does not die: a process waits for the kernel", b.record.Spec.ID)
	}
}

// remove kills what is left and forgets the container.
func (b *box) remove() error {
	if err := b.kill(); err != nil {
		return err
	}
	if b.manager == nil {
		return nil // it never came to be
	}
	b.sweep()
	if err := b.host.groups.destroy(b.manager); err != nil {
		return err
	}
	if b.pidfd != nil {
		_ = b.pidfd.Close()
	}
	if b.gate != nil {
		_ = b.gate.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	return os.RemoveAll(b.dir)
}

func (b *box) status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.record.Status
}

// save writes the record, whole or not at all.
func (b *box) save() error {
	if b.gone {
		return nil
	}
	body, err := json.Marshal(b.record)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	temporary := filepath.Join(b.dir, recordFile+".new")
	if err := os.WriteFile(temporary, body, 0o600); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := os.Rename(temporary, filepath.Join(b.dir, recordFile)); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}
