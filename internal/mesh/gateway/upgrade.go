// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Some clients ask for HTTP/2 by Upgrade, as curl --http2 does. The answer to
// that request then goes to stream 1. net/http's server knows HTTP/2 from its
// first byte only, so it is given what a client that had begun so would have
// sent: the preface and the settings, as they come, and then the request, in a
// frame of our making.

// maxFrame is the longest frame that need be taken before settings say more.
const maxFrame = 16 << 10

// switchToH2 agrees to HTTP/2 and hands the connection over.
func (c *conn) switchToH2() {
	request, err := headersFrame(&c.req)
	if err != nil {
		c.reject(refuse(400, "malformed request"))
		return
	}
	if _, err := c.s.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")); err != nil {
		return
	}
	c.start = c.r
	c.enter(heading, c.g.now(), c.g.Times.Head)
	for {
		n, ok := opening((*c.buf)[c.start:c.w])
		if !ok {
			return
		}
		if n > 0 {
			data := (*c.buf)[c.start:c.w]
			c.giveAway(bytes.Join([][]byte{data[:n], request, data[n:]}, nil))
			return
		}
		if c.more() != nil {
			return
		}
	}
}

// opening returns the length of a preface with the settings behind it: zero
// while there is more to come, and not ok if it is something else.
func opening(data []byte) (n int, ok bool) {
	const head = 9
	want := []byte(http2.ClientPreface)
	if len(data) < len(want)+head {
		return 0, bytes.HasPrefix(want, data[:min(len(data), len(want))])
	}
	frame := data[len(want):]
	length := int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
	if !bytes.HasPrefix(data, want) || http2.FrameType(frame[3]) != http2.FrameSettings || frame[4] != 0 || length > maxFrame {
		return 0, false
	}
	if n = len(want) + head + length; n > len(data) {
		return 0, true
	}
	return n, true
}

// headersFrame is a request without a body as the first stream of HTTP/2.
func headersFrame(h *head) ([]byte, error) {
	var block, out bytes.Buffer
	enc := hpack.NewEncoder(&block)
	put := func(name, value string) {
		_ = enc.WriteField(hpack.HeaderField{Name: name, Value: value}) // into memory
	}
	path := string(h.target)
	if path == "" || path[0] != '/' && path != "*" {
		path = "/" + path
	}
	put(":method", string(h.method))
	put(":scheme", "http")
	put(":authority", string(h.host))
	put(":path", path)
	for i := range h.count {
		switch f := &h.fields[i]; f.kind {
		case hopByHop, connection, hostField, upgradeField, http2Settings, trailerEncoding, expectField, contentLength:
		default:
			put(string(bytes.ToLower(h.name(f))), string(h.value(f)))
		}
	}
	framer := http2.NewFramer(&out, nil)
	first := block.Next(maxFrame)
	err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: block.Len() == 0})
	for err == nil && block.Len() > 0 {
		next := block.Next(maxFrame)
		err = framer.WriteContinuation(1, block.Len() == 0, next)
	}
	return out.Bytes(), err
}
