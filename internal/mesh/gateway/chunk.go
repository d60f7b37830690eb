// SPDX-License-Identifier: Apache-2.0

package gateway

import "errors"

// chunks follows the framing of a chunked body, so that it can be passed on
// as it came once it is known to be what it seems. It is strict: digits, an
// extension of printable bytes, CR LF. Where two peers could disagree about
// the end of a body, it is refused.
type chunks struct {
	state chunkState
	loose bool // a response: spaces may pad the size
	left  uint64
	size  int // digits seen
	extra int // bytes of extensions and trailers seen
	data  int64
	name  [24]byte
	named int
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkPad
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	chunkEndLF
	chunkEnd
)

// maxChunkExtra bounds the bytes of extensions and trailers in a body: what
// carries no data is not to be had without end.
const maxChunkExtra = 16 << 10

var (
	errChunk   = errors.New("malformed chunked encoding")
	errTrailer = errors.New("malformed trailer")
)

func (c *chunks) reset(loose bool) { *c = chunks{loose: loose} }

// next looks at the bytes that come next and returns how many of them belong
// together, and whether they are data: the rest is framing. When the body has
// ended, done is true, and further bytes are not part of it.
func (c *chunks) next(p []byte) (n int, data, done bool, err error) {
	if c.state == chunkData {
		n = int(min(uint64(len(p)), c.left))
		if c.left -= uint64(n); c.left == 0 {
			c.state = chunkDataCR
		}
		c.data += int64(n)
		return n, true, false, nil
	}
	for n < len(p) && c.state != chunkData && c.state != chunkEnd {
		if err := c.step(p[n]); err != nil {
			return n, false, false, err
		}
		n++
	}
	return n, false, c.state == chunkEnd, nil
}

// between reports whether what comes next is a chunk, of which nothing was seen.
func (c *chunks) between() bool { return c.state == chunkSize && c.size == 0 }

// scan returns how many bytes of p belong to the body.
func (c *chunks) scan(p []byte) (n int, done bool, err error) {
	for n < len(p) && !done {
		var m int
		m, _, done, err = c.next(p[n:])
		if n += m; err != nil {
			return n, false, err
		}
	}
	return n, done, nil
}

func (c *chunks) step(b byte) error {
	switch c.state {
	case chunkSize, chunkPad, chunkExtension, chunkSizeLF:
		return c.stepSize(b)
	case chunkDataCR:
		return c.expect(b, '\r', chunkDataLF)
	case chunkDataLF:
		c.left, c.size = 0, 0
		return c.expect(b, '\n', chunkSize)
	case chunkEndLF:
		return c.expect(b, '\n', chunkEnd)
	}
	return c.stepTrailer(b)
}

func (c *chunks) expect(b, want byte, next chunkState) error {
	if b != want {
		return errChunk
	}
	c.state = next
	return nil
}

func (c *chunks) stepSize(b byte) error {
	switch {
	case c.state == chunkSizeLF:
		if c.state = chunkData; c.left == 0 {
			c.state = trailerStart
		}
		return c.want(b == '\n')
	case b == '\r' && c.size > 0:
		c.state = chunkSizeLF
		return nil
	case c.state == chunkExtension:
		c.extra++
		return c.want(valueByte[b] && c.extra <= maxChunkExtra)
	case b == ';' && c.size > 0:
		c.state = chunkExtension
		return nil
	case c.loose && c.size > 0 && (b == ' ' || b == '\t'):
		c.state, c.extra = chunkPad, c.extra+1
		return c.want(c.extra <= maxChunkExtra)
	case c.state == chunkPad:
		return errChunk
	}
	digit, ok := hex(b)
	// Fifteen digits: no size overflows, and none needs more.
	if c.size++; !ok || c.size > 15 {
		return errChunk
	}
	c.left = c.left<<4 | uint64(digit)
	return nil
}

func (c *chunks) want(ok bool) error {
	if !ok {
		return errChunk
	}
	return nil
}

func (c *chunks) stepTrailer(b byte) error {
	if c.extra++; c.extra > maxChunkExtra {
		return errTrailer
	}
	switch c.state {
	case trailerStart:
		if b == '\r' {
			c.state = chunkEndLF
			return nil
		}
		c.named, c.state = 0, trailerName
		return c.stepName(b)
	case trailerName:
		if b == ':' && c.named > 0 {
			c.state = trailerValue
			return c.allowed()
		}
		return c.stepName(b)
	case trailerValue:
		if b == '\r' {
			c.state = trailerLF
			return nil
		}
		if !valueByte[b] {
			return errTrailer
		}
		return nil
	}
	if b != '\n' {
		return errTrailer
	}
	c.state = trailerStart
	return nil
}

func (c *chunks) stepName(b byte) error {
	if !tokenByte[b] {
		return errTrailer
	}
	if c.named < len(c.name) {
		c.name[c.named] = b
	}
	c.named++
	return nil
}

// allowed refuses trailers that say how a message is framed or routed.
func (c *chunks) allowed() error {
	if c.named > len(c.name) {
		return nil
	}
	if k := classify(c.name[:c.named]); k != plain && k != requestID && k != traceParent {
		return errTrailer
	}
	return nil
}

func hex(b byte) (byte, bool) {
	switch {
	case b >= '0' && b <= '9':
		return b - '0', true
	case b >= 'a' && b <= 'f':
		return b - 'a' + 10, true
	case b >= 'A' && b <= 'F':
		return b - 'A' + 10, true
	}
	return 0, false
}
