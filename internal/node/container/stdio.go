// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stdio carries the standard streams of one container: from it into the log
// and to whoever is attached, to it from the first who is attached.
//
// The container holds its output FIFOs open for reading too. So it is its own
// reader while no runtime lives: it may have to wait when a FIFO is full, but
// no signal ends it.
type stdio struct {
	id      string
	dir     string
	keeper  *keeper
	log     *logFile
	done    sync.WaitGroup // the pumps
	console *os.File       // master of the terminal, or nil

	mu       sync.Mutex
	stdin    *os.File // our end of it, or nil
	once     bool     // stdin closes with its first user
	fed      bool     // stdin has a user
	outputs  []*output
	finished bool
	readers  []*os.File
}

// An output is one who is attached.
type output struct {
	files map[string]*os.File // by stream
	gone  chan struct{}       // closed when nothing more will come
}

const (
	stdoutStream = "stdout"
	stderrStream = "stderr"
	// maxStall is how long a container waits for a slow attached reader before
	// that one is cut off.
	maxStall  = 2 * time.Second
	pumpBytes = 32 << 10
)

// buffers are shared by all pumps: one that waits holds none.
type buffers struct{ pool sync.Pool }

func newBuffers() *buffers {
	return &buffers{sync.Pool{New: func() any { b := make([]byte, pumpBytes); return &b }}}
}

func fifoPath(dir, stream string) string { return filepath.Join(dir, stream) }

// openStdio makes the FIFOs of a container in dir and opens our ends. It
// returns the container's: stdin, stdout and stderr.
func openStdio(dir string, spec *Spec, k *keeper) (*stdio, []*os.File, error) {
	log, err := openLog(spec.LogPath)
	if err != nil {
		return nil, nil, err
	}
	s := &stdio{id: spec.ID, dir: dir, keeper: k, log: log, once: spec.StdinOnce}
	theirs, err := s.fifos(spec)
	if err != nil {
		closeAll(theirs)
		s.close()
		return nil, nil, err
	}
	return s, theirs, nil
}

func (s *stdio) fifos(spec *Spec) (theirs []*os.File, err error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if spec.TTY { // the terminal takes the place of all three
		return []*os.File{null, null, null}, nil
	}
	theirs = []*os.File{null}
	if spec.Stdin {
		in, err := s.makeStdin()
		if err != nil {
			return theirs, err
		}
		_ = null.Close()
		theirs[0] = in
	}
	for _, stream := range []string{stdoutStream, stderrStream} {
		path := fifoPath(s.dir, stream)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return theirs, &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		if err := s.openReader(stream); err != nil {
			return theirs, err
		}
		f, err := openBlocking(path, unix.O_RDWR)
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, f)
	}
	return theirs, nil
}

func (s *stdio) makeStdin() (*os.File, error) {
	path := fifoPath(s.dir, "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if err := s.openStdin(); err != nil {
		return nil, err
	}
	return openBlocking(path, unix.O_RDONLY)
}

// openStdin opens our end, in a way that does not wait for the container's.
func (s *stdio) openStdin() error {
	in, err := os.OpenFile(fifoPath(s.dir, "stdin"), os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	s.stdin, err = os.OpenFile(fifoPath(s.dir, "stdin"), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	return err
}

func (s *stdio) openReader(stream string) error {
	r, err := os.OpenFile(fifoPath(s.dir, stream), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	s.readers = append(s.readers, r)
	return nil
}

// openBlocking opens a file that Go's poller must not make non-blocking,
// because it goes to another program.
func openBlocking(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// setConsole makes master the terminal of the container.
func (s *stdio) setConsole(master *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.console, s.stdin = master, master
	s.readers = []*os.File{master}
}

// keepOpen makes the container's input, and its terminal, outlive us.
func (s *stdio) keepOpen() error {
	if s.stdin == nil {
		return nil
	}
	return s.keeper.put(s.id, s.stdin)
}

// pump starts carrying output. The pumps end when nobody holds the
// container's ends any more.
func (s *stdio) pump(b *buffers) {
	for i, r := range s.readers {
		stream := []string{stdoutStream, stderrStream}[i]
		s.done.Go(func() { s.carry(b, stream, r) })
	}
}

func (s *stdio) carry(b *buffers, stream string, r *os.File) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for {
		var buffer *[]byte
		var n int
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			buffer = b.pool.Get().(*[]byte)
			for {
				if n, readErr = unix.Read(int(fd), *buffer); readErr != unix.EINTR {
					break
				}
			}
			if readErr == unix.EAGAIN {
				b.pool.Put(buffer)
				return false
			}
			return true
		})
		if err != nil {
			return
		}
		if n > 0 {
			// A full disk must not stop the container, nor those attached.
			_ = s.log.write(stream, (*buffer)[:n])
			s.spread(stream, (*buffer)[:n])
		}
		b.pool.Put(buffer)
		if readErr != nil || n <= 0 {
			return
		}
	}
}

// spread writes to all who are attached.
func (s *stdio) spread(stream string, p []byte) {
	s.mu.Lock()
	outputs := slices.Clone(s.outputs)
	s.mu.Unlock()
	for _, o := range outputs {
		f := o.files[stream]
		if f == nil {
			continue
		}
		_ = f.SetWriteDeadline(time.Now().Add(maxStall))
		if _, err := f.Write(p); err != nil {
			s.detach(o)
		}
	}
}

// attach connects files with the container. It returns what detach takes.
func (s *stdio) attach(stdin, stdout, stderr *os.File) (*output, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return nil, ErrNotRunning
	}
	o := &output{files: map[string]*os.File{stdoutStream: stdout, stderrStream: stderr}, gone: make(chan struct{})}
	s.outputs = append(s.outputs, o)
	if stdin != nil && s.stdin != nil {
		s.fed = true
		go s.feed(stdin)
	} else if stdin != nil {
		_ = stdin.Close()
	}
	return o, nil
}

// feed carries input until its source ends.
func (s *stdio) feed(from *os.File) {
	defer from.Close()
	_, err := io.Copy(s.stdin, from)
	if s.once && s.console == nil && !errors.Is(err, os.ErrClosed) {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.stdin.Close()
		_ = os.Remove(fifoPath(s.dir, "stdin")) // a new runtime must not open it again
		s.keeper.drop(s.id)
	}
}

func (s *stdio) detach(o *output) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.outputs, o); i >= 0 {
		s.outputs = slices.Delete(s.outputs, i, i+1)
		for _, f := range o.files {
			if f != nil {
				_ = f.Close()
			}
		}
		close(o.gone)
	}
}

// resize sets the size of the terminal.
func (s *stdio) resize(size Size) error {
	s.mu.Lock()
	console := s.console
	s.mu.Unlock()
	if console == nil {
		return fmt.Errorf("the container has no terminal")
	}
	return setSize(console, size)
}

func setSize(console *os.File, size Size) error {
	raw, err := console.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	return errors.Join(err, set)
}

// finish waits for the last output, though not forever: a process that left
// the container's cgroup could hold a stream open.
func (s *stdio) finish() {
	ended := make(chan struct{})
	go func() { s.done.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(maxStall):
	}
	s.close()
}

func (s *stdio) close() {
	s.mu.Lock()
	s.finished = true
	outputs := slices.Clone(s.outputs)
	s.mu.Unlock()
	for _, o := range outputs {
		s.detach(o)
	}
	closeAll(s.readers)
	if s.stdin != nil {
		_ = s.stdin.Close()
		s.keeper.drop(s.id)
	}
	s.log.close()
}

// reopenStdio opens our ends again of what an earlier runtime made.
func reopenStdio(dir string, spec *Spec, k *keeper) (*stdio, error) {
	log, err := openLog(spec.LogPath)
	if err != nil {
		return nil, err
	}
	s := &stdio{id: spec.ID, dir: dir, keeper: k, log: log, once: spec.StdinOnce}
	if spec.TTY {
		master, err := k.get(s.id)
		if err != nil {
			return s, nil // hung up; that its streams are gone is no reason to lose sight of it
		}
		s.setConsole(master)
		return s, nil
	}
	for _, stream := range []string{stdoutStream, stderrStream} {
		if err := s.openReader(stream); err != nil {
			s.close()
			return nil, err
		}
	}
	if err := s.openStdin(); err != nil && !os.IsNotExist(err) {
		s.close()
		return nil, err
	}
	return s, nil
}
