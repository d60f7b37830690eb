// SPDX-License-Identifier: Apache-2.0

package gateway

import "bytes"

const (
	// maxHead bounds the head of a message. Offsets in it are 16 bits wide.
	maxHead = 64<<10 - 1
	// maxFields bounds its header lines.
	maxFields = 128
)

// kind says which header fields need more than to be passed on.
type kind uint8

const (
	plain      kind = iota
	hopByHop        // never passed on
	connection      // and names others that are not
	hostField
	contentLength
	transferEncoding
	trailerEncoding // TE
	upgradeField
	expectField
	forwarded
	forwardedFor
	forwardedProto
	requestID
	idempotencyKey
	http2Settings
	routeTag
	defaultRoute
	traceParent
)

// field is one header line, by offsets into the head.
type field struct {
	start, colon   uint16 // name
	value, valueTo uint16 // without the white space around it
	end            uint16 // behind its line end
	kind           kind
}

// head is the parsed head of a message. It refers to the buffer it was parsed
// from, which must stay as it is for as long as the head is used.
type head struct {
	buf    []byte
	pos    int // up to where it is parsed
	begun  bool
	done   bool
	loose  bool // a response: line ends may be bare
	bare   bool // some were
	count  int
	fields [maxFields]field

	// The start line of a request, or of a response: as offsets while the
	// buffer may still be replaced, then as bytes.
	first, second  [2]int
	method, target []byte
	status         int
	reason         []byte

	minor int // of HTTP/1.x

	message
}

// message is what the fields of a head say about the message.
type message struct {
	host      []byte
	length    int64 // of the body; -1 if it is not said
	chunked   bool
	close     bool // the connection ends with this message
	keepAlive bool // an HTTP/1.0 peer asks to keep the connection
	upgrade   bool // Connection names Upgrade
	trailers  bool // TE: trailers
	expect    bool // Expect: 100-continue
	tag       []byte
	protocol  []byte // Upgrade
	settings  bool   // HTTP2-Settings
	keyed     bool   // Idempotency-Key
}

// reset prepares for the next message.
func (h *head) reset(loose bool) {
	h.buf, h.pos, h.begun, h.done, h.bare, h.count, h.loose = nil, 0, false, false, false, 0, loose
	h.method, h.target, h.reason = nil, nil, nil
	h.first, h.second = [2]int{}, [2]int{}
	h.status, h.minor = 0, 0
	h.message = message{length: -1}
}

// parse goes on with a buffer that begins with the head and has grown since
// the last call. It reports whether the head is complete; len is then h.pos.
func (h *head) parse(buf []byte) (bool, *refusal) {
	for !h.done {
		n := bytes.IndexByte(buf[h.pos:min(len(buf), maxHead)], '\n')
		if n < 0 {
			if len(buf) >= maxHead {
				return false, h.tooLarge()
			}
			return false, nil
		}
		line, end := buf[h.pos:h.pos+n], h.pos+n+1
		if n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		} else if !h.loose {
			return false, refuse(400, "bare line feed")
		} else {
			h.bare = true
		}
		if no := h.line(buf, line, end); no != nil {
			return false, no
		}
		h.pos = end
	}
	h.buf = buf
	if h.loose {
		h.reason = buf[h.first[0]:h.first[1]]
		return true, h.understandResponse()
	}
	h.method, h.target = buf[h.first[0]:h.first[1]], buf[h.second[0]:h.second[1]]
	return true, h.understandRequest()
}

func (h *head) line(buf, line []byte, end int) *refusal {
	switch {
	case h.begun && len(line) == 0:
		h.done = true
		return nil
	case h.begun:
		return h.field(buf, line, end)
	case len(line) == 0 && h.pos == 0 && !h.loose:
		// One empty line before a request is what some clients send after a
		// body. More are not HTTP.
		return nil
	}
	h.begun = true
	if h.loose {
		return h.statusLine(line)
	}
	return h.requestLine(line)
}

func (h *head) requestLine(line []byte) *refusal {
	one := bytes.IndexByte(line, ' ')
	two := bytes.LastIndexByte(line, ' ')
	if one <= 0 || two <= one+1 {
		return refuse(400, "malformed request line")
	}
	h.first, h.second = [2]int{h.pos, h.pos + one}, [2]int{h.pos + one + 1, h.pos + two}
	for _, c := range line[:one] {
		if !tokenByte[c] {
			return refuse(400, "malformed method")
		}
	}
	for _, c := range line[one+1 : two] {
		if c <= ' ' || c == 0x7f {
			return refuse(400, "malformed target")
		}
	}
	switch version := line[two+1:]; {
	case string(version) == "HTTP/1.1":
		h.minor = 1
	case string(version) == "HTTP/1.0":
	case bytes.HasPrefix(version, []byte("HTTP/")):
		return refuse(505, "unsupported version")
	default:
		return refuse(400, "malformed version")
	}
	return nil
}

func (h *head) statusLine(line []byte) *refusal {
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return refuse(502, "malformed status line")
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return refuse(502, "malformed status line")
		}
		h.status = 10*h.status + int(c-'0')
	}
	if h.status < 100 {
		return refuse(502, "malformed status line")
	}
	h.minor = int(line[7] - '0')
	if len(line) > 13 {
		h.first = [2]int{h.pos + 13, h.pos + len(line)}
		for _, c := range line[13:] {
			if !valueByte[c] {
				return refuse(502, "malformed status line")
			}
		}
	}
	return nil
}

func (h *head) field(buf, line []byte, end int) *refusal {
	if h.count == maxFields {
		return h.tooLarge()
	}
	colon := 0
	for colon < len(line) && tokenByte[line[colon]] {
		colon++
	}
	// A name ends at its colon: no space before it, no folded line, no line
	// without one. Peers disagree about all of these.
	if colon == 0 || colon == len(line) || line[colon] != ':' {
		return refuse(h.fault(), "malformed header field")
	}
	from, to := colon+1, len(line)
	for from < to && (line[from] == ' ' || line[from] == '\t') {
		from++
	}
	for to > from && (line[to-1] == ' ' || line[to-1] == '\t') {
		to--
	}
	for _, c := range line[from:to] {
		if !valueByte[c] {
			return refuse(h.fault(), "malformed header value")
		}
	}
	at := h.pos
	h.fields[h.count] = field{
		start: uint16(at), colon: uint16(at + colon),
		value: uint16(at + from), valueTo: uint16(at + to),
		end: uint16(end), kind: classify(line[:colon]),
	}
	h.count++
	return nil
}

// fault is the status that blames whoever sent the head.
func (h *head) fault() int {
	if h.loose {
		return 502
	}
	return 400
}

func (h *head) tooLarge() *refusal {
	if h.loose {
		return refuse(502, "header fields too large")
	}
	return refuseHeadSize
}

func (h *head) name(f *field) []byte  { return h.buf[f.start:f.colon] }
func (h *head) value(f *field) []byte { return h.buf[f.value:f.valueTo] }
