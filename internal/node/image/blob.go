// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// A blobReader reads a blob of known size. When the connection breaks it goes
// on where it was; it gives up after some tries that brought nothing.
type blobReader struct {
	ctx    context.Context
	se     *session
	digest string
	size   int64
	report func(Status, int64)

	body     io.ReadCloser
	noRange  bool // the registry cannot send a part
	off      int64
	failed   int // tries in a row that brought nothing
	restarts int
	told     time.Time
}

const (
	maxRestarts = 20
	tellEvery   = 100 * time.Millisecond
)

func (b *blobReader) Read(p []byte) (int, error) {
	if b.off == b.size {
		return 0, io.EOF
	}
	for {
		n, err := b.readOnce(p[:min(int64(len(p)), b.size-b.off)])
		if n > 0 {
			b.advance(n)
			return n, nil
		}
		if err == nil {
			continue
		}
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

func (b *blobReader) readOnce(p []byte) (int, error) {
	if b.body == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	n, err := b.body.Read(p)
	if err == io.EOF && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *blobReader) advance(n int) {
	b.off += int64(n)
	b.failed = 0
	if now := time.Now(); now.Sub(b.told) >= tellEvery || b.off == b.size {
		b.told = now
		b.report(StatusDownloading, b.off)
	}
}

// again decides whether to go on after err, and waits before it does.
func (b *blobReader) again(err error) error {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	b.failed++
	b.restarts++
	if b.failed >= maxTries || b.restarts > maxRestarts || !passing(err, b.failed) {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: registry sends only %d of %d bytes: %w", ErrCorrupt, b.off, b.size, err)
		}
		return err
	}
	b.report(StatusRetrying, b.off)
	if !b.se.pause(b.ctx, b.failed, err) {
		return err
	}
	return nil
}

// open asks for what is still missing.
func (b *blobReader) open() error {
	resp, err := b.se.get(b.ctx, "blobs/"+b.digest, func(r *http.Request) {
		if b.off > 0 && !b.noRange {
			r.Header.Set("Range", "bytes="+strconv.FormatInt(b.off, 10)+"-")
		}
	})
	if e := new(transport.Error); errors.As(err, &e) && e.StatusCode == http.StatusRequestedRangeNotSatisfiable && !b.noRange {
		b.noRange = true
		return b.open()
	}
	if err != nil {
		return err
	}
	skip := b.off
	if resp.StatusCode == http.StatusPartialContent {
		skip = 0
	}
	if want := b.size - b.off + skip; resp.ContentLength >= 0 && resp.ContentLength != want {
		resp.Body.Close()
		return fmt.Errorf("%w: registry has %d bytes, the manifest says %d", ErrCorrupt, resp.ContentLength, want)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		resp.Body.Close()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	b.body = resp.Body
	return nil
}

func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
