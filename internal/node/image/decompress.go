// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is what unpacking a zstd layer may keep in memory: the window
// of the strongest level that the zstd tool offers without --long.
const maxZstdWindow = 128 << 20

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress opens a layer in whatever form it has. The first bytes decide:
// media types are not always right.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return zr, nil
	case bytes.HasPrefix(head, magicZstd):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// A readAhead reads on while its user is busy, a few buffers ahead: a layer is
// then downloaded and decompressed while files are written.
type readAhead struct {
	full  chan []byte
	empty chan []byte
	stop  chan struct{}
	done  chan struct{}
	err   error // valid once full is closed
	cur   []byte
	buf   []byte
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		full:  make(chan []byte, aheadBuffers),
		empty: make(chan []byte, aheadBuffers),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- nil // made when first needed: most layers are small
	}
	go a.fill(r)
	return a
}

func (a *readAhead) fill(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.empty:
		case <-a.stop:
			a.err = io.ErrClosedPipe
			return
		}
		if buf == nil {
			buf = make([]byte, aheadSize)
		}
		n, err := fillUp(r, buf[:aheadSize])
		if n > 0 {
			a.full <- buf[:n]
		}
		if err != nil {
			a.err = err
			return
		}
	}
}

// fillUp is io.ReadFull that keeps the reader's own error: an end that comes
// too early must not look like an end.
func fillUp(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.buf != nil {
			a.empty <- a.buf
			a.buf = nil
		}
		buf, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.cur, a.buf = buf, buf
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// Close ends the reading. The reader below must return soon by itself.
func (a *readAhead) Close() {
	close(a.stop)
	<-a.done
}
