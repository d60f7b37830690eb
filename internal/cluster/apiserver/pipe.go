// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"io"
	"sync"
)

// pipeLimit bounds what a slow reader can leave unread before the writer
// waits, as a socket's buffers would.
const pipeLimit = 256 << 10

// A pipe carries a body from handler to client. Unlike io.Pipe it buffers, so
// that a handler with a short answer is done before anybody reads.
type pipe struct {
	mutex   sync.Mutex
	changed sync.Cond
	data    []byte
	ended   error // set by the writer: what the reader gets after the data
	closed  bool  // set by the reader: it reads no more
	onClose func()
}

func newPipe(onClose func()) *pipe {
	p := &pipe{onClose: sync.OnceFunc(onClose)}
	p.changed.L = &p.mutex
	return p
}

func (p *pipe) write(b []byte) (int, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for len(p.data) >= pipeLimit && !p.closed {
		p.changed.Wait()
	}
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	p.data = append(p.data, b...)
	p.changed.Broadcast()
	return len(b), nil
}

func (p *pipe) end(reason error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.ended = reason
	p.changed.Broadcast()
}

func (p *pipe) Read(b []byte) (int, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for len(p.data) == 0 && p.ended == nil && !p.closed {
		p.changed.Wait()
	}
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	if len(p.data) == 0 {
		return 0, p.ended
	}
	n := copy(b, p.data)
	p.data = p.data[n:]
	if len(p.data) == 0 {
		p.data = nil // an idle watch keeps no buffer
	}
	p.changed.Broadcast()
	return n, nil
}

// Close is the client going away: it ends the request.
func (p *pipe) Close() error {
	p.mutex.Lock()
	p.closed = true
	p.data = nil
	p.changed.Broadcast()
	p.mutex.Unlock()
	p.onClose()
	return nil
}
