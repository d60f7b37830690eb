// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"io"
	"net"
	"sync"
)

// halfCloser is a connection whose directions end one by one.
type halfCloser interface{ CloseWrite() error }

// Join carries bytes both ways until both directions have ended, or one has
// failed; then it closes both. The end of one direction is passed on, and the
// other goes on. It returns the first error that is not an end. Tap, if it is
// not nil, is called when bytes have come from b; they then pass through us.
func Join(a, b net.Conn, tap func()) error {
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	carry := func(dst net.Conn, src io.Reader) {
		// From one TCP connection to another, this splices.
		_, err := io.Copy(dst, src)
		if err == nil {
			if h, ok := dst.(halfCloser); ok {
				err = h.CloseWrite()
			} else {
				err = io.EOF
			}
		}
		if err != nil {
			once.Do(func() {
				first = err
				a.Close()
				b.Close()
			})
		}
	}
	wg.Go(func() { carry(b, a) })
	if tap == nil {
		carry(a, b)
	} else {
		carry(a, tapped{b, tap})
	}
	wg.Wait()
	if errors.Is(first, io.EOF) || errors.Is(first, net.ErrClosed) {
		return nil
	}
	return first
}

type tapped struct {
	io.Reader
	tap func()
}

func (t tapped) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	t.tap()
	return n, err
}
