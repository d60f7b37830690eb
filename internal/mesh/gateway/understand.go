// SPDX-License-Identifier: Apache-2.0

package gateway

import "bytes"

// understandRequest reads what the fields say about a request, and refuses
// those that two peers could read in two ways.
func (h *head) understandRequest() *refusal {
	hosts, encodings, lengths := 0, 0, 0
	for i := range h.count {
		f := &h.fields[i]
		v := h.value(f)
		switch f.kind {
		case hostField:
			hosts++
			h.host = v
		case contentLength:
			var ok bool
			lengths++
			if h.length, ok = number(v); !ok {
				return refuse(400, "malformed Content-Length")
			}
		case transferEncoding:
			encodings++
			if !fold(v, "chunked") {
				return refuse(501, "unsupported transfer encoding")
			}
			h.chunked = true
		case expectField:
			if !fold(v, "100-continue") {
				return refuse(417, "unknown expectation")
			}
			h.expect = true
		default:
			h.note(f, v)
		}
	}
	switch {
	case encodings > 1 || lengths > 1 || encodings > 0 && lengths > 0:
		return refuse(400, "ambiguous message length")
	case encodings > 0 && h.minor == 0:
		return refuse(400, "transfer encoding in HTTP/1.0")
	case hosts > 1:
		return refuse(400, "more than one Host")
	case hosts == 0 && h.minor == 1:
		return refuse(400, "missing Host")
	}
	if h.minor == 0 && !h.keepAlive {
		h.close = true
	}
	h.dropNamed()
	return h.resource()
}

// resource reads the target of a request. One in absolute form names the host
// too, and that counts.
func (h *head) resource() *refusal {
	switch {
	case h.target[0] == '/':
	case string(h.method) == "CONNECT":
		return refuse(405, "CONNECT is not served")
	case string(h.target) == "*" && string(h.method) == "OPTIONS":
	default:
		rest, ok := cutScheme(h.target)
		if !ok {
			return refuse(400, "malformed target")
		}
		end := bytes.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		h.host, h.target = rest[:end], rest[end:]
		if len(h.host) == 0 {
			return refuse(400, "malformed target")
		}
	}
	for _, c := range h.host {
		if !hostByte[c] {
			return refuse(400, "malformed Host")
		}
	}
	return nil
}

func cutScheme(target []byte) ([]byte, bool) {
	for _, scheme := range []string{"http://", "https://"} {
		if len(target) > len(scheme) && fold(target[:len(scheme)], scheme) {
			return target[len(scheme):], true
		}
	}
	return nil, false
}

// understandResponse reads what the fields say about a response.
func (h *head) understandResponse() *refusal {
	for i := range h.count {
		f := &h.fields[i]
		v := h.value(f)
		switch f.kind {
		case contentLength:
			n, ok := number(v)
			if !ok || h.length >= 0 && h.length != n {
				return refuse(502, "malformed Content-Length")
			}
			if h.length >= 0 {
				f.kind = hopByHop // said twice: once is enough
			}
			h.length = n
		case transferEncoding:
			if h.chunked || !fold(v, "chunked") {
				return refuse(502, "unsupported transfer encoding")
			}
			h.chunked = true
		default:
			h.note(f, v)
		}
	}
	if h.chunked {
		// The length in front of a chunked body is wrong or an attack.
		h.length = -1
		for i := range h.count {
			if h.fields[i].kind == contentLength {
				h.fields[i].kind = hopByHop
			}
		}
	}
	if h.minor == 0 && !h.keepAlive {
		h.close = true
	}
	h.dropNamed()
	return nil
}

// note reads the fields that mean the same in both directions.
func (h *head) note(f *field, v []byte) {
	switch f.kind {
	case connection:
		h.connectionOptions(v)
	case trailerEncoding:
		for e, rest, more := nextElement(v); more; e, rest, more = nextElement(rest) {
			h.trailers = h.trailers || fold(e, "trailers")
		}
	case upgradeField:
		h.protocol = v
	case routeTag:
		h.tag = v
	case http2Settings:
		h.settings = true
	case idempotencyKey:
		h.keyed = true
	}
}

func (h *head) connectionOptions(v []byte) {
	for e, rest, more := nextElement(v); more; e, rest, more = nextElement(rest) {
		switch {
		case fold(e, "close"):
			h.close = true
		case fold(e, "keep-alive"):
			h.keepAlive = true
		case fold(e, "upgrade"):
			h.upgrade = true
		}
	}
}

// dropNamed drops the fields that Connection names, except those that the
// message cannot do without: a client must not strip what others have to see.
func (h *head) dropNamed() {
	for i := range h.count {
		f := &h.fields[i]
		if f.kind != connection {
			continue
		}
		for e, rest, more := nextElement(h.value(f)); more; e, rest, more = nextElement(rest) {
			if len(e) > 0 && !fold(e, "close") && !fold(e, "keep-alive") {
				h.drop(e)
			}
		}
	}
}

func (h *head) drop(name []byte) {
	for i := range h.count {
		if f := &h.fields[i]; f.kind == plain && bytes.EqualFold(h.name(f), name) {
			f.kind = hopByHop
		}
	}
}

// idempotent reports whether a request may be sent twice.
func (h *head) idempotent() bool {
	switch string(h.method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return h.keyed
}

// bodied reports whether a request has a body.
func (h *head) bodied() bool { return h.chunked || h.length > 0 }
