// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"strconv"
)

// origin is what the app is told about where a request has come from.
type origin struct {
	client []byte // its address
	proto  string // of the listener
	// defaultRoute and tag are set when tags can be chosen by header.
	tagHeader bool
	tag       string
	// trace is what the app is told of its trace, if not what the client said.
	trace []byte
}

// appendRequest writes the head of the request that goes to the app. Lines
// that are passed on are copied as they came, in runs.
func appendRequest(out []byte, h *head, o *origin) []byte {
	out = append(out, h.method...)
	out = append(out, ' ')
	if len(h.target) == 0 || h.target[0] != '/' && h.target[0] != '*' {
		out = append(out, '/')
	}
	out = append(out, h.target...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, h.host...)
	out = append(out, "\r\n"...)

	var seen forwardedFields
	run := h.runs()
	for i := range h.count {
		f := &h.fields[i]
		if seen.pass(h, f, o) {
			continue
		}
		out = run.flush(out, f)
	}
	out = run.rest(out)
	out = seen.append(out, o)
	if h.trailers {
		out = append(out, "Te: trailers\r\n"...)
	}
	if h.upgrading() {
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, h.protocol...)
		out = append(out, "\r\n"...)
	}
	return append(out, "\r\n"...)
}

// upgrading reports whether a request asks for another protocol that can be
// passed on: to HTTP/2, only we ourselves could switch.
func (h *head) upgrading() bool {
	return h.upgrade && len(h.protocol) > 0 && h.minor == 1 && !h.bodied() && !fold(h.protocol, "h2c")
}

// forwardedFields gathers what earlier proxies have said.
type forwardedFields struct {
	fors       [8][]byte
	count      int
	proto, id  []byte
	host       []byte
	hasForward bool
}

// pass notes a field and reports whether its line is passed on as it is.
func (s *forwardedFields) pass(h *head, f *field, o *origin) bool {
	switch f.kind {
	case plain:
		if f.colon-f.start == 16 && fold(h.name(f), "x-forwarded-host") {
			s.host = h.value(f)
		}
		return true
	case contentLength, transferEncoding, idempotencyKey:
		return true
	case expectField:
		return h.minor == 1 && h.bodied()
	case forwarded:
		s.hasForward = true
		return true
	case requestID:
		if s.id == nil {
			s.id = h.value(f)
			return len(s.id) > 0
		}
		return true
	case forwardedFor:
		if s.count < len(s.fors) {
			s.fors[s.count] = h.value(f)
			s.count++
		}
		return false
	case forwardedProto:
		s.proto = h.value(f)
		return false
	case routeTag, defaultRoute:
		return !o.tagHeader
	case traceParent:
		return len(o.trace) == 0
	}
	return false
}

// append writes what we say about a request: the fields Knative's own path
// gives it.
func (s *forwardedFields) append(out []byte, o *origin) []byte {
	out = append(out, "X-Forwarded-For: "...)
	for _, v := range s.fors[:s.count] {
		if len(v) > 0 {
			out = append(out, v...)
			out = append(out, ", "...)
		}
	}
	out = append(out, o.client...)
	out = append(out, "\r\nX-Forwarded-Proto: "...)
	if !fold(s.proto, "http") && !fold(s.proto, "https") {
		s.proto = nil
		out = append(out, o.proto...)
	}
	out = append(out, s.proto...)
	out = append(out, "\r\n"...)
	if !s.hasForward {
		out = s.appendForwarded(out, o)
	}
	if len(s.id) == 0 {
		out = append(out, "X-Request-Id: "...)
		out = appendUUID(out)
		out = append(out, "\r\n"...)
	}
	if o.tagHeader {
		out = appendTag(out, o.tag)
	}
	if len(o.trace) > 0 {
		out = append(out, "Traceparent: "...)
		out = append(out, o.trace...)
		out = append(out, "\r\n"...)
	}
	return out
}

// appendForwarded writes the standard form of the same: the first address with
// host and protocol, and an element for each further address.
func (s *forwardedFields) appendForwarded(out []byte, o *origin) []byte {
	out = append(out, "Forwarded: "...)
	first := true
	node := func(addr []byte) {
		if !first {
			out = append(out, ", "...)
		}
		out = append(out, "for="...)
		out = appendNode(out, addr)
		if first {
			if len(s.host) > 0 {
				out = append(out, ";host="...)
				out = append(out, s.host...)
			}
			out = append(out, ";proto="...)
			if s.proto != nil {
				out = append(out, s.proto...)
			} else {
				out = append(out, o.proto...)
			}
			first = false
		}
	}
	for _, v := range s.fors[:s.count] {
		for e, rest, more := nextElement(v); more; e, rest, more = nextElement(rest) {
			if len(e) > 0 {
				node(e)
			}
		}
	}
	node(o.client)
	return append(out, "\r\n"...)
}

func appendNode(out, addr []byte) []byte {
	if bytes.IndexByte(addr, ':') < 0 {
		return append(out, addr...)
	}
	out = append(out, `"[`...)
	out = append(out, addr...)
	return append(out, `]"`...)
}

func appendTag(out []byte, tag string) []byte {
	if tag == "" {
		return append(out, "Knative-Serving-Default-Route: true\r\n"...)
	}
	out = append(out, "Knative-Serving-Tag: "...)
	out = append(out, tag...)
	return append(out, "\r\n"...)
}

// appendUUID writes a random UUID, version 4.
func appendUUID(out []byte) []byte {
	const digits = "0123456789abcdef"
	hi, lo := rand.Uint64(), rand.Uint64()
	hi = hi&^(0xf<<12) | 4<<12
	lo = lo&^(3<<62) | 2<<62
	for i := range 32 {
		switch i {
		case 8, 12, 16, 20:
			out = append(out, '-')
		}
		word := hi
		if i >= 16 {
			word = lo
		}
		out = append(out, digits[word>>(60-4*(i%16))&15])
	}
	return out
}

// reply says how a response is passed on.
type reply struct {
	chunk    bool // its end is only known by the connection's: chunk it
	plain    bool // the client knows no chunks
	close    bool // our connection to the client ends with it
	keep     bool // tell an HTTP/1.0 client that it does not
	switches bool // 101
}

// appendResponse writes the head of the response that goes to the client.
func appendResponse(out []byte, h *head, r reply) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(h.status), 10)
	out = append(out, ' ')
	if len(h.reason) > 0 {
		out = append(out, h.reason...)
	} else {
		out = append(out, http.StatusText(h.status)...)
	}
	out = append(out, "\r\n"...)
	run := h.runs()
	for i := range h.count {
		f := &h.fields[i]
		switch f.kind {
		case hopByHop, connection, upgradeField:
		case transferEncoding:
			if !r.plain {
				continue
			}
		default:
			continue
		}
		out = run.flush(out, f)
	}
	out = run.rest(out)
	if r.chunk {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case r.switches:
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, h.protocol...)
		out = append(out, "\r\n"...)
	case r.close:
		out = append(out, "Connection: close\r\n"...)
	case r.keep:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, "\r\n"...)
}

// runs copies header lines that follow each other at once.
type runs struct {
	h    *head
	from int // first byte not yet copied or skipped
}

func (h *head) runs() runs {
	if h.count == 0 {
		return runs{h, h.pos}
	}
	return runs{h, int(h.fields[0].start)}
}

// flush copies the lines before f, and skips f.
func (r *runs) flush(out []byte, f *field) []byte {
	out = r.copy(out, int(f.start))
	r.from = int(f.end)
	return out
}

// rest copies the lines that are left, up to the empty one.
func (r *runs) rest(out []byte) []byte {
	if r.h.count == 0 {
		return out
	}
	return r.copy(out, int(r.h.fields[r.h.count-1].end))
}

func (r *runs) copy(out []byte, to int) []byte {
	lines := r.h.buf[r.from:to]
	if !r.h.bare {
		return append(out, lines...)
	}
	// An app that ends its lines with a bare line feed: mend them.
	for len(lines) > 0 {
		n := bytes.IndexByte(lines, '\n')
		out = append(out, bytes.TrimSuffix(lines[:n], []byte("\r"))...)
		out = append(out, "\r\n"...)
		lines = lines[n+1:]
	}
	return out
}
