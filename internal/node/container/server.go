// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"
)

// runtimeRole is the argument with which this binary becomes the runtime. The
// directory of its state and its socket follow.
const runtimeRole = "runtime"

// versionVariable tells a runtime, in its environment, which build it is.
const versionVariable = "SONAGI_RUNTIME_VERSION"

// Role says which of this package's roles the arguments of this process name:
// "" for none.
func Role(args []string) string {
	switch {
	case len(args) == 2 && args[1] == initRole:
		return initRole
	case len(args) == 4 && args[1] == runtimeRole:
		return runtimeRole
	case len(args) == 3 && args[1] == keeperRole:
		return keeperRole
	}
	return ""
}

// Become plays the role that the arguments of this process name, and does not
// return if they name one.
func Become(args []string) {
	switch Role(args) {
	case initRole:
		Init()
	case runtimeRole:
		finish(serve(args[2], args[3]))
	case keeperRole:
		finish(keep(args[2]))
	}
}

func finish(err error) {
	if err != nil {
		slog.Error("container runtime ended", "error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	// maxRetire is how long a runtime waits for the one before it to be gone.
	maxRetire  = 5 * time.Second
	keepBlanks = 2
	// refillAfter keeps the making of blanks out of the way of the container
	// that took one.
	refillAfter = 150 * time.Millisecond
	maxEvents   = 1024
	readyFD     = 3 // where the runtime tells its starter that it listens
)

// A server is the runtime process.
type server struct {
	host    *host
	version string
	sealed  *os.File // the binary that processes start from, open for as long as we live
	refill  *time.Timer

	mu       sync.Mutex
	boxes    map[string]*box
	watchers map[chan Event]bool
	listener *net.UnixListener
	bye      chan struct{} // closed when the last one is answered
	end      sync.Once
}

func serve(dir, socket string) error {
	// Small and steady: what one request needs is garbage a moment later.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(24 << 20)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	unix.Umask(0o022)
	name := []byte("sonagi-runtime\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)

	lock, err := claim(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	s, err := newServer(dir)
	if err != nil {
		return err
	}
	if err := s.adoptAll(); err != nil {
		return err
	}
	_ = os.Remove(socket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ready := os.NewFile(readyFD, "ready")
	_, _ = ready.Write([]byte("ok"))
	_ = ready.Close()
	if err := s.host.nursery.fill(); err != nil {
		s.host.log.Warn("no process made ahead", "error", err)
	}
	s.listener = listener
	if err := s.accept(listener); err != nil {
		return err
	}
	<-s.bye
	return nil
}

// claim makes sure that there is one runtime for dir.
func claim(dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(dir, "boxes"), 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(lock.Fd()), unix.LOCK_EX) }()
	select {
	case err = <-locked:
	case <-time.After(maxRetire):
		err = errors.New("another runtime has it")
	}
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	return lock, nil
}

func newServer(dir string) (*server, error) {
	groups, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	exe, sealed, err := sealedExe(dir)
	if err != nil {
		return nil, err
	}
	stage := filepath.Join(dir, "stage")
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	s := &server{version: os.Getenv(versionVariable), sealed: sealed, boxes: map[string]*box{}, watchers: map[chan Event]bool{}, bye: make(chan struct{})}
	s.host = &host{
		dir: filepath.Join(dir, "boxes"), log: slog.Default(), groups: groups, buffers: newBuffers(), tell: s.tell,
		initLog: os.Stderr, stageRoot: stage,
		nursery: &nursery{exe: exe, log: os.Stderr, keep: keepBlanks},
		keeper:  &keeper{exe: exe, log: os.Stderr, socket: filepath.Join(dir, "keeper.sock")},
	}
	if groups.unified {
		s.host.nursery.keep = 0 // there a process is born in its cgroup, and cannot be made ahead
	}
	s.refill = time.AfterFunc(time.Hour, func() {
		if err := s.host.nursery.fill(); err != nil {
			s.host.log.Warn("no process made ahead", "error", err)
		}
	})
	return s, nil
}

// sealedExe is the binary that container processes start as, in a form that
// nobody can write to, whatever a container does with /proc/self/exe. It is
// made once for all containers: what would change it for one of them would
// have to be able to write to it.
func sealedExe(dir string) (string, *os.File, error) {
	if exeseal.IsSelfExeCloned() {
		return "/proc/self/exe", nil, nil
	}
	f, err := exeseal.CloneSelfExe(dir)
	if err == nil {
		f, err = outOfTheWay(f)
	}
	if err != nil {
		return "", nil, fmt.Errorf("seal the binary: %w", err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), f, nil
}

// adoptAll takes over the containers of an earlier runtime.
func (s *server) adoptAll() error {
	entries, err := os.ReadDir(s.host.dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(s.host.dir, e.Name())
		var r record
		text, err := os.ReadFile(filepath.Join(dir, recordFile))
		if err == nil {
			err = json.Unmarshal(text, &r)
		}
		if err != nil {
			// It never had a process, or one that ended with its runtime.
			s.host.log.Warn("container without a record", "container", e.Name(), "error", err)
			_ = os.RemoveAll(dir)
			continue
		}
		b, err := adopt(s.host, dir, r)
		if err != nil {
			return fmt.Errorf("adopt container %s: %w", e.Name(), err)
		}
		s.boxes[e.Name()] = b
	}
	return nil
}

func (s *server) accept(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE):
			s.host.log.Error("out of file descriptors", "error", err)
			time.Sleep(100 * time.Millisecond) // until others close theirs: there is no event for it
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		go s.converse(c)
	}
}

// converse answers the requests of one connection, one after the other.
func (s *server) converse(c *net.UnixConn) {
	defer c.Close()
	for {
		var r request
		files, err := receive(c, &r)
		if err != nil {
			return
		}
		last := r.Op == "shutdown" || r.Op == "retire"
		err = s.answer(c, &r, files)
		if last {
			s.end.Do(func() { close(s.bye) })
		}
		if err != nil || last {
			return
		}
	}
}

// answer does what r asks. Operations that stream keep the connection.
func (s *server) answer(c *net.UnixConn, r *request, files []*os.File) error {
	switch r.Op {
	case "watch":
		return s.watch(c)
	case "exec":
		return s.exec(c, r, files)
	case "attach":
		return s.attach(c, r, files)
	}
	closeAll(files)
	out, err := s.do(r)
	out.Error = toWire(err)
	return send(c, out)
}

func (s *server) do(r *request) (reply, error) {
	switch r.Op {
	case "create":
		return reply{}, s.create(r.Spec)
	case "list":
		return reply{Statuses: s.list()}, nil
	case "delete":
		return reply{}, s.remove(r.ID)
	case "shutdown":
		defer s.refuse()
		return reply{}, s.shutdown()
	case "ping":
		return reply{Version: s.version}, nil
	case "retire":
		s.refuse()
		return reply{}, nil
	}
	b, err := s.find(r.ID)
	if err != nil {
		return reply{}, err
	}
	switch r.Op {
	case "start":
		started, err := b.start()
		return reply{Started: &started}, err
	case "signal":
		return reply{}, b.signal(syscall.Signal(r.Signal))
	case "kill":
		return reply{}, b.kill()
	case "status":
		return reply{Statuses: []Status{b.status()}}, nil
	case "resize", "reopenLog":
		return reply{}, b.streams(r)
	case "stats":
		u, err := s.host.groups.usage(b.manager, time.Now())
		return reply{Usage: &u}, err
	}
	return reply{}, fmt.Errorf("unknown operation %q", r.Op)
}

// refuse takes no calls any more. Nobody finds the socket when it returns.
func (s *server) refuse() {
	s.host.nursery.empty()
	_ = s.listener.Close()
}

// streams does what concerns the standard streams.
func (b *box) streams(r *request) error {
	b.mu.Lock()
	streams := b.stdio
	b.mu.Unlock()
	switch {
	case streams == nil:
		return ErrNotRunning
	case r.Op == "reopenLog":
		return streams.log.reopen()
	case r.Size == nil:
		return errors.New("no size")
	}
	return streams.resize(*r.Size)
}

func (s *server) find(id string) (*box, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.boxes[id]
	if b == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return b, nil
}

func (s *server) create(spec *Spec) error {
	if spec == nil {
		return errors.New("no spec")
	}
	if err := spec.check(); err != nil {
		return err
	}
	// A box is in the map from the beginning, locked while it is being made,
	// so that a second Create and a Delete meet it.
	b, err := s.enter(*spec)
	if err != nil {
		return err
	}
	err = b.create()
	s.refill.Reset(refillAfter)
	if err != nil {
		s.mu.Lock()
		delete(s.boxes, spec.ID)
		s.mu.Unlock()
	}
	return err
}

func (s *server) enter(spec Spec) (*box, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boxes[spec.ID] != nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, spec.ID)
	}
	b, err := newBox(s.host, spec)
	if err != nil {
		return nil, err
	}
	s.boxes[spec.ID] = b
	return b, nil
}

func (s *server) remove(id string) error {
	b, err := s.find(id)
	if err != nil {
		return nil
	}
	if err := b.remove(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, id)
	return nil
}

func (s *server) all() []*box {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*box, 0, len(s.boxes))
	for _, b := range s.boxes {
		out = append(out, b)
	}
	return out
}

func (s *server) list() []Status {
	out := []Status{}
	for _, b := range s.all() {
		out = append(out, b.status())
	}
	return out
}

// shutdown removes everything.
func (s *server) shutdown() error {
	s.host.nursery.empty()
	boxes := s.all()
	errs := make([]error, len(boxes))
	var done sync.WaitGroup
	for i, b := range boxes {
		done.Go(func() { errs[i] = s.remove(b.record.Spec.ID) })
	}
	done.Wait()
	return errors.Join(errs...)
}

// tell gives e to all watchers. One that does not keep up is cut off; when it
// comes again it is told everything again.
func (s *server) tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		select {
		case w <- e:
		default:
			delete(s.watchers, w)
			close(w)
		}
	}
}

func (s *server) watch(c *net.UnixConn) error {
	events := make(chan Event, maxEvents)
	s.mu.Lock()
	s.watchers[events] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, events)
	}()
	if err := send(c, reply{}); err != nil {
		return err
	}
	for _, b := range s.all() {
		if st := b.status(); st.State == Exited {
			e := b.event()
			if err := send(c, reply{Event: &e}); err != nil {
				return err
			}
		}
	}
	gone := hangup(c)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return errors.New("watcher does not keep up")
			}
			if err := send(c, reply{Event: &e}); err != nil {
				return err
			}
		case <-gone:
			return net.ErrClosed
		}
	}
}

// hangup returns a channel that closes when the other end of c does.
func hangup(c *net.UnixConn) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = c.Read(make([]byte, 1))
	}()
	return gone
}

// place puts the files that came with a request where r says.
func place(r *request, files []*os.File) (out [3]*os.File) {
	for i, has := range r.Has {
		if has && len(files) > 0 {
			out[i], files = files[0], files[1:]
		}
	}
	closeAll(files)
	return out
}

func (s *server) exec(c *net.UnixConn, r *request, files []*os.File) error {
	streams := place(r, files)
	b, err := s.find(r.ID)
	var e *extra
	if err == nil {
		if r.Exec == nil {
			r.Exec = &ExecSpec{}
		}
		e, err = b.exec(r.Exec, streams)
	}
	closeAll(streams[:])
	if err != nil {
		return send(c, reply{Error: toWire(err)})
	}
	var console []*os.File
	if e.console != nil {
		console = []*os.File{e.console}
	}
	started := &Started{Pid: e.blank.process.Pid, At: time.Now()}
	if err := send(c, reply{Started: started}, console...); err != nil {
		e.kill()
	}
	exited := make(chan int, 1)
	go func() { exited <- e.wait() }()
	gone := hangup(c)
	for {
		select {
		case code := <-exited:
			_ = send(c, reply{ExitCode: code})
			return net.ErrClosed // hangup reads from it
		case <-gone:
			e.kill() // nobody is there to hear of it any more
			gone = nil
		}
	}
}

func (s *server) attach(c *net.UnixConn, r *request, files []*os.File) error {
	streams := place(r, files)
	b, err := s.find(r.ID)
	var o *output
	if err == nil {
		if b.stdio == nil {
			err = ErrNotRunning
		} else {
			o, err = b.stdio.attach(streams[0], streams[1], streams[2])
		}
	}
	if err != nil {
		closeAll(streams[:])
		return send(c, reply{Error: toWire(err)})
	}
	if err := send(c, reply{}); err != nil {
		b.stdio.detach(o)
		return err
	}
	select {
	case <-o.gone:
		_ = send(c, reply{})
	case <-hangup(c):
		b.stdio.detach(o)
	}
	return net.ErrClosed
}
