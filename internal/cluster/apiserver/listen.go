// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A manyListener accepts on several addresses as if they were one.
type manyListener struct {
	listeners []net.Listener
	accepted  chan net.Conn
	broken    chan error
	closed    chan struct{}
	once      sync.Once
}

// listen opens all addresses or none. An address may not exist yet (that of
// the bridge is made by another process, later): the socket is bound to it anyway.
func listen(ctx context.Context, addresses []string) (*manyListener, error) {
	if len(addresses) == 0 {
		return nil, errors.New("the API server has no address to listen on")
	}
	m := &manyListener{
		accepted: make(chan net.Conn),
		broken:   make(chan error, len(addresses)),
		closed:   make(chan struct{}),
	}
	config := net.ListenConfig{Control: freebind}
	for _, address := range addresses {
		l, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			_ = m.Close()
			return nil, explain(address, err)
		}
		m.listeners = append(m.listeners, l)
	}
	for _, l := range m.listeners {
		go m.accept(l)
	}
	return m, nil
}

func freebind(_, _ string, c syscall.RawConn) error {
	var result error
	err := c.Control(func(fd uintptr) {
		result = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
	})
	return errors.Join(err, result)
}

func explain(address string, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	who := holder(address)
	if who == "" {
		who = "another process"
	}
	return fmt.Errorf("%s is already in use by %s: stop it or choose another port: %w", address, who, err)
}

func (m *manyListener) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			m.broken <- err
			return
		}
		select {
		case m.accepted <- conn:
		case <-m.closed:
			_ = conn.Close()
			return
		}
	}
}

func (m *manyListener) Accept() (net.Conn, error) {
	select {
	case conn := <-m.accepted:
		return conn, nil
	case err := <-m.broken:
		return nil, err
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *manyListener) Close() error {
	var errs []error
	m.once.Do(func() {
		close(m.closed)
		for _, l := range m.listeners {
			errs = append(errs, l.Close())
		}
	})
	return errors.Join(errs...)
}

// Addr is the principal address.
func (m *manyListener) Addr() net.Addr { return m.listeners[0].Addr() }
