// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stream reads and writes a TCP connection with as little as possible around
// the system calls. Calls are non-blocking, and so short that the scheduler
// need not hear of them; a goroutine that has to wait is parked by the
// network poller, as with net.TCPConn. Nothing is allocated per call.
//
// One goroutine may read while another writes.
type Stream struct {
	conn *net.TCPConn
	raw  syscall.RawConn

	read struct {
		fn   func(uintptr) bool
		into []byte
		pool *Pool // lends the buffer, only once there is something to read
		lent *[]byte
		n    int
		err  syscall.Errno
	}
	write struct {
		fn   func(uintptr) bool
		bufs [2][]byte
		n    int
		err  syscall.Errno
	}
	watch struct {
		fn func(uintptr) bool
	}
	probe struct {
		fn    func(uintptr)
		one   [1]byte
		quiet bool
	}
}

// NewStream takes over a connection.
func NewStream(c *net.TCPConn) (*Stream, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Stream{conn: c, raw: raw}
	s.read.fn, s.write.fn, s.watch.fn, s.probe.fn = s.tryRead, s.tryWrite, s.tryWatch, s.tryProbe
	return s, nil
}

// Conn returns the connection.
func (s *Stream) Conn() *net.TCPConn { return s.conn }

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	s.read.into = p
	err := s.raw.Read(s.read.fn)
	s.read.into = nil
	return s.readResult(err)
}

// ReadPooled reads into a buffer from the pool, which is lent only when there
// is something to read: an idle connection holds none. Without an error the
// buffer is the caller's to put back.
func (s *Stream) ReadPooled(pool *Pool) (*[]byte, int, error) {
	s.read.pool = pool
	err := s.raw.Read(s.read.fn)
	lent := s.read.lent
	s.read.pool, s.read.lent = nil, nil
	n, err := s.readResult(err)
	if err != nil && lent != nil {
		pool.Put(lent)
		lent = nil
	}
	return lent, n, err
}

func (s *Stream) readResult(err error) (int, error) {
	switch {
	case err != nil:
		return 0, err
	case s.read.err != 0:
		return 0, s.read.err
	case s.read.n == 0:
		return 0, io.EOF
	}
	return s.read.n, nil
}

func (s *Stream) tryRead(fd uintptr) bool {
	r := &s.read
	if r.pool != nil && r.lent == nil {
		r.lent = r.pool.Get()
		r.into = *r.lent
	}
	r.n, r.err = recv(fd, r.into, 0)
	if r.err != unix.EAGAIN {
		return true
	}
	if r.pool != nil {
		r.pool.Put(r.lent)
		r.lent, r.into = nil, nil
	}
	return false
}

// Write implements io.Writer.
func (s *Stream) Write(p []byte) (int, error) { return s.WriteTwo(p, nil) }

// WriteTwo writes two buffers, in one system call if the connection takes it.
func (s *Stream) WriteTwo(a, b []byte) (int, error) {
	w := &s.write
	w.bufs[0], w.bufs[1], w.n, w.err = a, b, 0, 0
	err := s.raw.Write(w.fn)
	w.bufs[0], w.bufs[1] = nil, nil
	if err == nil && w.err != 0 {
		err = w.err
	}
	return w.n, err
}

func (s *Stream) tryWrite(fd uintptr) bool {
	w := &s.write
	for len(w.bufs[0])+len(w.bufs[1]) > 0 {
		n, err := send(fd, w.bufs[0], w.bufs[1])
		if err == unix.EAGAIN {
			return false
		}
		if err != 0 {
			w.err = err
			return true
		}
		w.n += n
		first := min(n, len(w.bufs[0]))
		w.bufs[0] = w.bufs[0][first:]
		w.bufs[1] = w.bufs[1][n-first:]
	}
	return true
}

// Quiet reports whether the peer has neither sent anything nor closed: an idle
// connection that may be used again.
func (s *Stream) Quiet() bool {
	return s.raw.Control(s.probe.fn) == nil && s.probe.quiet
}

func (s *Stream) tryProbe(fd uintptr) {
	_, err := recv(fd, s.probe.one[:], unix.MSG_PEEK)
	s.probe.quiet = err == unix.EAGAIN
}

// AwaitEnd waits until the peer has closed its side, however much it has sent
// before, and leaves unread what it has sent. It returns nil when that came,
// and an error when a deadline or Close has come first.
func (s *Stream) AwaitEnd() error {
	return s.raw.Read(s.watch.fn)
}

func (s *Stream) tryWatch(fd uintptr) bool {
	// The state tells of an end behind data that nobody has read yet; each
	// change of it wakes the poller.
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State != tcpEstablished
}

const tcpEstablished = 1

// past is a deadline that has been missed.
var past = time.Unix(1, 0)

// InterruptRead makes a Read, present or future, fail with a deadline error.
func (s *Stream) InterruptRead() { _ = s.conn.SetReadDeadline(past) }

// InterruptWrite makes a Write, present or future, fail with a deadline error.
func (s *Stream) InterruptWrite() { _ = s.conn.SetWriteDeadline(past) }

// Resume takes back both interrupts.
func (s *Stream) Resume() { _ = s.conn.SetDeadline(time.Time{}) }

// ResumeRead takes back InterruptRead.
func (s *Stream) ResumeRead() { _ = s.conn.SetReadDeadline(time.Time{}) }

// Reset closes the connection so that the peer learns of an error: what it has
// received is not to be taken for the whole.
func (s *Stream) Reset() {
	_ = s.conn.SetLinger(0)
	s.conn.Close()
}

// Close closes the connection.
func (s *Stream) Close() { s.conn.Close() }
