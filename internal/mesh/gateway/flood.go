// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"time"

	"golang.org/x/net/http2"
)

// An HTTP/2 client pays next to nothing for frames that carry nothing, and each
// costs us work: net/http bounds what they hold, and not how many come. So the
// frames of a connection are counted as they are read.

const (
	// maxResets is how many streams a client may give up within a second. One
	// that means it has hundreds of requests at a time, and cancels them all.
	maxResets = 2 * maxStreams
	// maxEmpty is how many frames without data a client may send within a
	// second. Those that keep a window open are not among them: a fast reader
	// sends as many as it likes.
	maxEmpty  = 2000
	floodSpan = time.Second
)

var errFlood = errors.New("too many frames that carry nothing")

// guarded is a connection whose frames are counted, if it speaks HTTP/2 from
// its first byte.
type guarded struct {
	net.Conn
	frames frames
}

func (g *guarded) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if n > 0 && !g.frames.scan(p[:n], time.Now) {
		return 0, errFlood
	}
	return n, err
}

// CloseWrite ends one direction.
func (g *guarded) CloseWrite() error {
	if h, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// frames follows the frames of a connection.
type frames struct {
	plain   bool // it is something else
	opened  int  // bytes of the preface seen
	head    [frameHead]byte
	got     int // bytes of head
	skip    int // bytes of the payload to come
	since   time.Time
	resets  int
	empties int
}

const frameHead = 9

// scan reads on, and reports whether that is still what a client may do.
func (f *frames) scan(p []byte, now func() time.Time) bool {
	for len(p) > 0 && !f.plain {
		switch {
		case f.opened < len(http2.ClientPreface):
			n := min(len(p), len(http2.ClientPreface)-f.opened)
			f.plain = !bytes.Equal(p[:n], []byte(http2.ClientPreface[f.opened:f.opened+n]))
			f.opened += n
			p = p[n:]
		case f.skip > 0:
			n := min(len(p), f.skip)
			f.skip -= n
			p = p[n:]
		default:
			n := copy(f.head[f.got:], p)
			f.got += n
			p = p[n:]
			if f.got == frameHead {
				f.got = 0
				f.skip = int(binary.BigEndian.Uint32(f.head[:4]) >> 8)
				if !f.count(now) {
					return false
				}
			}
		}
	}
	return true
}

// count takes a frame into account.
func (f *frames) count(now func() time.Time) bool {
	switch http2.FrameType(f.head[3]) {
	case http2.FrameRSTStream:
		f.resets++
	case http2.FrameData:
		if f.skip > 0 || http2.Flags(f.head[4]).Has(http2.FlagDataEndStream) {
			return true
		}
		f.empties++
	case http2.FrameSettings, http2.FramePing, http2.FramePriority, http2.FrameContinuation:
		f.empties++
	default:
		return true
	}
	if f.resets <= maxResets && f.empties <= maxEmpty {
		return true
	}
	if t := now(); t.Sub(f.since) > floodSpan {
		f.since, f.resets, f.empties = t, 0, 0
		return true
	}
	return false
}
