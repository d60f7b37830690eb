// SPDX-License-Identifier: Apache-2.0

package gateway

// tokenByte, valueByte and hostByte tell which bytes may be in the name of a
// header field, in its value, and in a host.
var (
	tokenByte = bytesOf("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	hostByte  = bytesOf("!$%&'()*+,-.:;=[]_~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	valueByte = printable()
)

func bytesOf(set string) (t [256]bool) {
	for i := range len(set) {
		t[set[i]] = true
	}
	return t
}

// printable is a tab, and everything that is not a control character.
func printable() (t [256]bool) {
	for c := range t {
		t[c] = c == '\t' || c >= ' ' && c != 0x7f
	}
	return t
}

// fold compares a name with a lower-case one, without regard to case.
func fold(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// classify tells the kind of a field by its name.
func classify(name []byte) kind {
	switch len(name) {
	case 2:
		return is(name, "te", trailerEncoding)
	case 4:
		return is(name, "host", hostField)
	case 6:
		return is(name, "expect", expectField)
	case 7:
		return is(name, "upgrade", upgradeField)
	case 9:
		return is(name, "forwarded", forwarded)
	case 10:
		if k := is(name, "connection", connection); k != plain {
			return k
		}
		return is(name, "keep-alive", hopByHop)
	case 11:
		return is(name, "traceparent", traceParent)
	case 12:
		return is(name, "x-request-id", requestID)
	case 14:
		return classify14(name)
	case 15:
		return classify15(name)
	case 16:
		if k := is(name, "proxy-connection", hopByHop); k != plain {
			return k
		}
		return is(name, "k-passthrough-lb", hopByHop)
	case 17:
		if k := is(name, "transfer-encoding", transferEncoding); k != plain {
			return k
		}
		return is(name, "x-forwarded-proto", forwardedProto)
	case 18:
		return is(name, "proxy-authenticate", hopByHop)
	case 19:
		if k := is(name, "proxy-authorization", hopByHop); k != plain {
			return k
		}
		return is(name, "knative-serving-tag", routeTag)
	case 24:
		return is(name, "knative-serving-revision", hopByHop)
	case 25:
		return is(name, "knative-serving-namespace", hopByHop)
	case 29:
		return is(name, "knative-serving-default-route", defaultRoute)
	}
	return plain
}

func classify14(name []byte) kind {
	if k := is(name, "content-length", contentLength); k != plain {
		return k
	}
	if k := is(name, "http2-settings", http2Settings); k != plain {
		return k
	}
	return is(name, "k-network-hash", hopByHop)
}

func classify15(name []byte) kind {
	if k := is(name, "x-forwarded-for", forwardedFor); k != plain {
		return k
	}
	if k := is(name, "idempotency-key", idempotencyKey); k != plain {
		return k
	}
	// What Knative's own hops say to each other is not for apps, nor is it
	// for clients to say.
	if k := is(name, "k-proxy-request", hopByHop); k != plain {
		return k
	}
	if k := is(name, "k-network-probe", hopByHop); k != plain {
		return k
	}
	return is(name, "k-original-host", hopByHop)
}

func is(name []byte, lower string, k kind) kind {
	if fold(name, lower) {
		return k
	}
	return plain
}

// number parses a decimal number that is digits only.
func number(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

// nextElement takes an element off a comma-separated list. It is empty for
// empty elements, and more is false at the end of the list.
func nextElement(list []byte) (element, rest []byte, more bool) {
	if list == nil {
		return nil, nil, false
	}
	for i, c := range list {
		if c == ',' {
			return trim(list[:i]), list[i+1:], true
		}
	}
	return trim(list), nil, true
}

func trim(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}
