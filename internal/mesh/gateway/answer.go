// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"io"
	"strconv"

	"github.com/sonagi/sonagi/internal/wire"
)

// framing tells where the body of an answer ends.
type framing struct {
	how    how
	left   int64
	sent   int64 // byClose
	chunks chunks
}

type how uint8

const (
	bodyless how = iota
	byLength
	byChunks
	byClose
)

// take returns how many of the bytes belong to the body, and whether it ends.
func (f *framing) take(p []byte) (n int, done bool, err error) {
	switch f.how {
	case byLength:
		n = int(min(int64(len(p)), f.left))
		f.left -= int64(n)
		return n, f.left == 0, nil
	case byChunks:
		return f.chunks.scan(p)
	case byClose:
		f.sent += int64(len(p))
		return len(p), false, nil
	}
	return 0, true, nil
}

// answer passes on the answer whose head has been read. It reports whether the
// client's connection can take another request.
func (x *exchange) answer(up *upstream) bool {
	x.status = x.resp.status
	if x.status == 101 {
		return x.upgrade(up)
	}
	r, keep := x.plan()
	x.out = appendResponse(x.out[:0], &x.resp, r)
	up.r += x.resp.pos
	if r.plain || r.chunk {
		return x.reframe(up, r, keep)
	}
	first := up.rest()
	n, done, err := x.framing.take(first)
	if err != nil {
		return x.broken(up)
	}
	if !done {
		return x.stream(up, n, keep)
	}
	return x.whole(up, first[:n], keep, n == len(first))
}

// plan decides how the body is framed on both sides.
func (x *exchange) plan() (r reply, keep bool) {
	f := &x.framing
	f.how, f.left, f.sent = byClose, 0, 0
	switch {
	case string(x.req.method) == "HEAD", x.status == 204, x.status == 304:
		f.how = bodyless
	case x.resp.chunked:
		f.how = byChunks
		f.chunks.reset(true)
		r.plain = x.req.minor == 0
	case x.resp.length >= 0:
		f.how, f.left = byLength, x.resp.length
	default:
		r.chunk = x.req.minor == 1
	}
	// A client that is still sending when the answer begins is told that this
	// is the end: the rest of its body is not waited for.
	keep = !x.req.close && (!x.body.running || x.body.read.Load()) && !x.g.draining.Load()
	if x.req.minor == 0 && (f.how == byChunks || f.how == byClose) {
		keep = false
	}
	r.close, r.keep = !keep, keep && x.req.minor == 0
	return r, keep
}

// whole sends an answer that has been read to its end. The pod is free before
// the client has got it.
func (x *exchange) whole(up *upstream, body []byte, keep, reuse bool) bool {
	x.stopPump()
	x.mu.Lock()
	x.up, x.answered = nil, true
	clean := x.cause == nil
	x.mu.Unlock()
	buf := up.buf
	up.buf, up.r, up.w = nil, 0, 0
	x.part(up, clean && reuse)
	x.release()

	var err error
	if len(x.out)+len(body) <= wire.Small {
		// One buffer is cheaper than two for the kernel, and this a small copy.
		x.out = append(x.out, body...)
		_, err = x.s.Write(x.out)
	} else {
		_, err = x.s.WriteTwo(x.out, body)
	}
	if buf != nil {
		x.g.free(buf)
	}
	return x.finish() && err == nil && keep && !x.unread
}

// part ends the use of a connection to a pod.
func (x *exchange) part(up *upstream, reuse bool) {
	if reuse && !x.unsent && !x.resp.close && x.framing.how != byClose {
		up.put(x.g.now())
		return
	}
	up.free(x.g.small)
	up.Close()
}

// stream sends an answer as it comes. The first n bytes of its body are here.
func (x *exchange) stream(up *upstream, n int, keep bool) bool {
	x.mark()
	x.proceed()
	_, err := x.s.WriteTwo(x.out, up.rest()[:n])
	up.free(x.g.small)
	if err != nil {
		return x.deserted(up)
	}
	buf := x.g.large.Get()
	defer x.g.free(buf)
	for {
		got, err := up.Read(*buf)
		if err != nil {
			return x.cut(up, err, keep)
		}
		x.proceed()
		n, done, err := x.framing.take((*buf)[:got])
		if err != nil {
			return x.cut(up, err, keep)
		}
		if _, err := x.s.Write((*buf)[:n]); err != nil {
			return x.deserted(up)
		}
		if done {
			clean := x.finish()
			x.part(up, clean && n == got)
			return clean && keep && !x.unread
		}
	}
}

// proceed notes that the app has written.
func (x *exchange) proceed() {
	if x.revision.Idle > 0 {
		x.progress.Store(int64(x.g.now()))
	}
}

// broken answers for an app whose answer makes no sense from its start.
func (x *exchange) broken(up *upstream) bool {
	x.finish()
	x.part(up, false)
	return x.failed(refuse(502, "malformed answer"))
}

// deserted ends an exchange whose client takes no more.
func (x *exchange) deserted(up *upstream) bool {
	x.finish()
	x.part(up, false)
	return false
}

// cut ends an exchange whose app has stopped in the middle of its answer, or
// at its end if that is how it says so.
func (x *exchange) cut(up *upstream, err error, keep bool) bool {
	clean := x.finish()
	x.part(up, false)
	switch {
	case clean && x.framing.how == byClose && errors.Is(err, io.EOF),
		!clean && x.overdue():
		return keep && !x.unread
	}
	x.s.Reset() // the client is not to take it for the whole
	return false
}

// overdue ends an answer whose time is over as Knative's queue does: with the
// words that would have been its body, if the length was not told before.
func (x *exchange) overdue() bool {
	x.mu.Lock()
	late := errors.Is(x.cause, errTimeout)
	x.mu.Unlock()
	f := &x.framing
	open := f.how == byClose || f.how == byChunks && f.chunks.between()
	if !late || !open || x.req.minor == 0 {
		return false
	}
	x.s.Resume()
	x.enter(lingering, x.g.now(), x.g.Times.Linger)
	_, err := x.s.Write(lastWords)
	return err == nil
}

// lastWords are a chunk that says that the time is over, and the end.
var lastWords = []byte(strconv.FormatInt(int64(len(lateText)), 16) + "\r\n" + lateText + "\r\n0\r\n\r\n")

// reframe sends an answer whose body is framed otherwise for the client: taken
// out of its chunks for HTTP/1.0, or put into chunks where only the end of the
// connection would tell its end.
func (x *exchange) reframe(up *upstream, r reply, keep bool) bool {
	x.mark()
	if _, err := x.s.Write(x.out); err != nil {
		return x.deserted(up)
	}
	buf := x.g.large.Get()
	defer x.g.free(buf)
	first := copy(*buf, up.rest())
	up.free(x.g.small)
	for got := first; ; {
		x.proceed()
		done, err := false, error(nil)
		if r.chunk {
			err = x.writeChunk((*buf)[:got])
		} else {
			done, err = x.writeData((*buf)[:got])
		}
		switch {
		case errors.Is(err, errChunk), errors.Is(err, errTrailer):
			return x.cut(up, err, false)
		case err != nil:
			return x.deserted(up)
		case done:
			x.finish()
			x.part(up, false)
			return false
		}
		if got, err = up.Read(*buf); err != nil {
			return x.reframed(up, err, r, keep)
		}
	}
}

// reframed ends an answer that ends with its connection.
func (x *exchange) reframed(up *upstream, err error, r reply, keep bool) bool {
	if r.chunk && errors.Is(err, io.EOF) {
		if _, err := x.s.Write([]byte("0\r\n\r\n")); err != nil {
			return x.deserted(up)
		}
	}
	return x.cut(up, err, keep)
}

// writeChunk writes bytes as one chunk.
func (x *exchange) writeChunk(p []byte) error {
	if len(p) == 0 {
		return nil // that would be the end
	}
	x.framing.sent += int64(len(p))
	x.out = append(strconv.AppendInt(x.out[:0], int64(len(p)), 16), "\r\n"...)
	if _, err := x.s.WriteTwo(x.out, p); err != nil {
		return err
	}
	_, err := x.s.Write([]byte("\r\n"))
	return err
}

// writeData writes what is data among the bytes of a chunked body.
func (x *exchange) writeData(p []byte) (done bool, err error) {
	for len(p) > 0 && !done {
		n, data, end, err := x.framing.chunks.next(p)
		if err != nil {
			return false, err
		}
		if data {
			if _, err := x.s.Write(p[:n]); err != nil {
				return false, err
			}
		}
		p, done = p[n:], end
	}
	return done, nil
}

// upgrade passes on the app's consent to another protocol, and then the bytes
// of both sides until they end.
func (x *exchange) upgrade(up *upstream) bool {
	if !x.req.upgrading() || len(x.resp.protocol) == 0 {
		return x.broken(up)
	}
	x.lease = x.lease.Stream()
	x.out = appendResponse(x.out[:0], &x.resp, reply{switches: true})
	up.r += x.resp.pos
	x.mu.Lock()
	x.answered, x.pumping = true, true // both directions are read from here on
	x.limits.first = x.limits.start
	x.unwatch()
	x.mu.Unlock()
	if x.progress.Store(0); x.revision.ResponseStart == 0 || len(up.rest()) > 0 {
		x.progress.Store(int64(x.g.now()))
	}
	_, err := x.s.WriteTwo(x.out, up.rest())
	if err == nil && x.r < x.w {
		_, err = up.Write((*x.buf)[x.r:x.w])
	}
	x.r = x.w
	up.free(x.g.small)
	if err == nil {
		var tap func()
		if x.revision.Idle > 0 || x.revision.ResponseStart > 0 {
			tap = func() { x.progress.Store(int64(x.g.now())) }
		}
		_ = wire.Join(x.s.Conn(), up.Conn(), tap) // whoever is left is told by its end
	}
	x.mu.Lock()
	x.pumping = false
	x.mu.Unlock()
	x.finish()
	up.Close()
	return false
}
