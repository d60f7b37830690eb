// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net"
	"sync"
)

// Handoff is a listener whose connections are given to it, by whoever has
// accepted them and looked at their first bytes.
type Handoff struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// NewHandoff returns a listener that says it has the address.
func NewHandoff(addr net.Addr) *Handoff {
	return &Handoff{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Give hands over a connection, with the bytes that were read from it. It
// reports false when the listener is closed.
func (h *Handoff) Give(c net.Conn, read []byte) bool {
	if len(read) > 0 {
		c = &unread{Conn: c, read: append([]byte(nil), read...)}
	}
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *Handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *Handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *Handoff) Addr() net.Addr { return h.addr }

// unread is a connection some of whose bytes were read already.
type unread struct {
	net.Conn
	read []byte
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.read) == 0 {
		return u.Conn.Read(p)
	}
	n := copy(p, u.read)
	u.read = u.read[n:]
	return n, nil
}

// CloseWrite ends one direction.
func (u *unread) CloseWrite() error {
	if h, ok := u.Conn.(halfCloser); ok {
		return h.CloseWrite()
	}
	return nil
}
