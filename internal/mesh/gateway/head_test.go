// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// smuggling are requests that two servers could read in two ways, and others
// that are not HTTP. Each is refused, and the connection closed.
var smuggling = map[string]struct {
	request string
	status  int
}{
	"length and chunks":              {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	"chunks and length":              {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
	"two lengths":                    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400},
	"the same length twice":          {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400},
	"list of lengths":                {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400},
	"signed length":                  {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400},
	"negative length":                {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd", 400},
	"hexadecimal length":             {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd", 400},
	"huge length":                    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nabcd", 400},
	"empty length":                   {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400},
	"space before colon":             {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
	"tab before colon":               {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 4\r\n\r\nabcd", 400},
	"folded line":                    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400},
	"folded line with tab":           {"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", 400},
	"first field line is folded":     {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
	"other encoding":                 {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501},
	"list of encodings":              {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
	"chunked twice":                  {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	"chunked, chunked":               {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501},
	"xchunked":                       {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
	"chunked with vertical tab":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400},
	"chunks in HTTP/1.0":             {"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
	"bare line feeds":                {"GET / HTTP/1.1\nHost: a\n\n", 400},
	"one bare line feed":             {"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400},
	"bare carriage return":           {"GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: w\r\n\r\n", 400},
	"null in value":                  {"GET / HTTP/1.1\r\nHost: a\r\nX: y\x00\r\n\r\n", 400},
	"null in name":                   {"GET / HTTP/1.1\r\nHost: a\r\nX\x00: y\r\n\r\n", 400},
	"line without colon":             {"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400},
	"empty name":                     {"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 400},
	"no host":                        {"GET / HTTP/1.1\r\n\r\n", 400},
	"two hosts":                      {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
	"host with a path":               {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
	"host with a user":               {"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400},
	"host with a space":              {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
	"absolute target without a host": {"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"absolute target with a user":    {"GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"other scheme":                   {"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"relative target":                {"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"CONNECT":                        {"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405},
	"space in target":                {"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"two spaces":                     {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"no version":                     {"GET /\r\n\r\n", 400},
	"version 0.9":                    {"GET / HTTP/0.9\r\n\r\n", 505},
	"version 2 in words":             {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
	"lower-case version":             {"GET / http/1.1\r\nHost: a\r\n\r\n", 400},
	"method with a parenthesis":      {"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"leading space":                  {" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"two empty lines in front":       {"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	"unknown expectation":            {"POST / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\na", 417},
	"no hexadecimal chunk size":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", 400},
	"chunk size with 0x":             {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400},
	"chunk size that overflows":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n", 400},
	"chunk size with space":          {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", 400},
	"chunk line with bare line feed": {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n0\n\n", 400},
	"line feed in chunk extension":   {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\na\r\n0\r\n\r\n", 400},
	"chunk longer than it says":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400},
	"length as a trailer":            {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n", 400},
	"folded trailer":                 {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n z\r\n\r\n", 400},
}

func TestHeadIsRefused(t *testing.T) {
	for name, c := range smuggling {
		t.Run(name, func(t *testing.T) {
			h, body, no := read(c.request)
			if no == nil && h.chunked {
				var ch chunks
				_, _, err := ch.scan(body)
				if err != nil {
					no = refuse(400, err.Error())
				}
			}
			if no == nil || no.status != c.status {
				t.Errorf("%v, want %d", no, c.status)
			}
		})
	}
}

// read parses a request as it would arrive: byte by byte.
func read(request string) (*head, []byte, *refusal) {
	h := &head{}
	h.reset(false)
	for n := 1; n <= len(request); n++ {
		// A new buffer each time, as when it has to grow.
		done, no := h.parse([]byte(request[:n]))
		if no != nil {
			return nil, nil, no
		}
		if done {
			return h, []byte(request[h.pos:]), nil
		}
	}
	return nil, nil, refuse(0, "incomplete")
}

func TestHead(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		check   func(*head) bool
	}{
		"plain":            {"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n", func(h *head) bool { return string(h.target) == "/a?b" && string(h.host) == "x" && !h.close }},
		"length":           {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n", func(h *head) bool { return h.length == 12 && h.bodied() }},
		"chunks":           {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n", func(h *head) bool { return h.chunked && h.length == -1 }},
		"close":            {"GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", func(h *head) bool { return h.close }},
		"HTTP/1.0":         {"GET / HTTP/1.0\r\n\r\n", func(h *head) bool { return h.close && h.minor == 0 }},
		"HTTP/1.0 kept":    {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", func(h *head) bool { return !h.close }},
		"upgrade":          {"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", func(h *head) bool { return h.upgrading() }},
		"upgrade unasked":  {"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n", func(h *head) bool { return !h.upgrading() }},
		"trailers":         {"GET / HTTP/1.1\r\nHost: x\r\nTE: gzip, trailers\r\n\r\n", func(h *head) bool { return h.trailers }},
		"expect":           {"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", func(h *head) bool { return h.expect }},
		"absolute":         {"GET http://y:81/z?q HTTP/1.1\r\nHost: x\r\n\r\n", func(h *head) bool { return string(h.host) == "y:81" && string(h.target) == "/z?q" }},
		"absolute, bare":   {"GET HTTP://y HTTP/1.1\r\nHost: x\r\n\r\n", func(h *head) bool { return string(h.host) == "y" && len(h.target) == 0 }},
		"options":          {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", func(h *head) bool { return string(h.target) == "*" }},
		"one empty line":   {"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", func(h *head) bool { return string(h.method) == "GET" && string(h.host) == "x" }},
		"white space":      {"GET / HTTP/1.1\r\nHost: \t x \r\nX:y\r\n\r\n", func(h *head) bool { return string(h.host) == "x" && string(h.value(&h.fields[1])) == "y" }},
		"bytes above 127":  {"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\nX: \xe9\r\n\r\n", func(h *head) bool { return string(h.target) == "/\xc3\xa9" }},
		"idempotency key":  {"POST / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: 1\r\n\r\n", func(h *head) bool { return h.idempotent() }},
		"no second chance": {"POST / HTTP/1.1\r\nHost: x\r\n\r\n", func(h *head) bool { return !h.idempotent() }},
	} {
		t.Run(name, func(t *testing.T) {
			h, _, no := read(c.request)
			if no != nil {
				t.Fatal(no)
			}
			if !c.check(h) {
				t.Errorf("%q %q %+v", h.method, h.target, h.message)
			}
		})
	}
}

func TestHeadIsBounded(t *testing.T) {
	for name, request := range map[string]string{
		"many fields":   "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n",
		"a long field":  "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", maxHead) + "\r\n\r\n",
		"a long target": "GET /" + strings.Repeat("b", maxHead) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			h := &head{}
			h.reset(false)
			if _, no := h.parse([]byte(request)); no == nil || no.status != 431 {
				t.Errorf("%v, want 431", no)
			}
		})
	}
}

func TestComposedRequest(t *testing.T) {
	for name, c := range map[string]struct{ request, want string }{
		"added": {
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nA: b\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nA: b\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\nForwarded: for=1.2.3.4;proto=http\r\n\r\n",
		},
		"continued": {
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nX-Forwarded-For: 9.9.9.9, ::1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: y\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nX-Forwarded-Host: y\r\nX-Forwarded-For: 9.9.9.9, ::1, 1.2.3.4\r\nX-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9;host=y;proto=https, for=\"[::1]\", for=1.2.3.4\r\n\r\n",
		},
		"forwarded is kept": {
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nForwarded: for=8.8.8.8\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nForwarded: for=8.8.8.8\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\n\r\n",
		},
		"hop by hop": {
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Secret, Host, Content-Length\r\nKeep-Alive: 1\r\nX-Secret: s\r\nProxy-Connection: a\r\nTE: trailers, deflate\r\nK-Proxy-Request: activator\r\nKnative-Serving-Revision: r\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Request-Id: 1\r\nA: b\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nA: b\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\nForwarded: for=1.2.3.4;proto=http\r\nTe: trailers\r\n\r\n",
		},
		"body": {
			"POST /p HTTP/1.1\r\nExpect: 100-continue\r\nHost: x\r\nX-Request-Id: 1\r\nContent-Length: 3\r\n\r\n",
			"POST /p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nX-Request-Id: 1\r\nContent-Length: 3\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\nForwarded: for=1.2.3.4;proto=http\r\n\r\n",
		},
		"absolute": {
			"GET http://y HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nX-Forwarded-Proto: nonsense\r\nForwarded: a=b\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: y\r\nX-Request-Id: 1\r\nForwarded: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\n\r\n",
		},
		"upgrade": {
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nForwarded: a=b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\nForwarded: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, _, no := read(c.request)
			if no != nil {
				t.Fatal(no)
			}
			o := &origin{client: []byte("1.2.3.4"), proto: "http"}
			if got := string(appendRequest(nil, h, o)); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestTagsAreTold(t *testing.T) {
	h, _, _ := read("GET / HTTP/1.1\r\nHost: x\r\nKnative-Serving-Tag: other\r\n\r\n")
	for tag, want := range map[string]string{"": "Knative-Serving-Default-Route: true\r\n", "blue": "Knative-Serving-Tag: blue\r\n"} {
		got := string(appendRequest(nil, h, &origin{client: []byte("1.2.3.4"), proto: "http", tagHeader: true, tag: tag}))
		if !strings.Contains(got, want) || strings.Contains(got, "other") {
			t.Errorf("tag %q:\n%s", tag, got)
		}
	}
	if got := string(appendRequest(nil, h, &origin{client: []byte("1.2.3.4")})); !strings.Contains(got, "Knative-Serving-Tag: other\r\n") {
		t.Errorf("without tags by header:\n%s", got)
	}
}

func TestUUID(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		u := string(appendUUID(nil))
		if len(u) != 36 || u[8] != '-' || u[13] != '-' || u[14] != '4' || u[18] != '-' || u[23] != '-' || !strings.Contains("89ab", u[19:20]) || seen[u] {
			t.Fatal(u)
		}
		seen[u] = true
	}
}

// FuzzHead compares our verdict with that of net/http: what we take it must
// take too, and understand in the same way. We may refuse more.
func FuzzHead(f *testing.F) {
	for _, c := range smuggling {
		f.Add([]byte(c.request))
	}
	f.Add([]byte("GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n"))
	f.Add([]byte("POST http://y/b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := &head{}
		h.reset(false)
		done, no := h.parse(data)
		if !done || no != nil {
			return
		}
		// We leave out one empty line.
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(data, []byte("\r\n")))))
		if err != nil {
			if lenient(h, err) {
				return
			}
			t.Fatalf("taken, and refused by net/http: %v\n%q", err, data)
		}
		compare(t, h, theirs, data)

		// And what we make of it means the same once more.
		out := appendRequest(nil, h, &origin{client: []byte("1.2.3.4"), proto: "http"})
		again := &head{}
		again.reset(false)
		if done, no := again.parse(out); !done || no != nil {
			t.Fatalf("passed on as what we refuse: %v\n%q\n%q", no, data, out)
		}
		if again.length != h.length || again.chunked != h.chunked || !bytes.Equal(again.host, h.host) {
			t.Fatalf("passed on as something else\n%q\n%q", data, out)
		}
	})
}

// lenient reports whether net/http is known to be stricter here, about what
// frames no message: escapes in a target, which are the app's to judge.
func lenient(h *head, err error) bool {
	return strings.Contains(err.Error(), "invalid URL escape") || strings.Contains(err.Error(), "parse ") ||
		strings.Contains(err.Error(), "invalid method")
}

func compare(t *testing.T, h *head, r *http.Request, data []byte) {
	host := string(h.host)
	if string(h.method) != r.Method || r.Host != host && !strings.EqualFold(r.Host, host) {
		t.Fatalf("method %q %q, host %q %q\n%q", h.method, r.Method, host, r.Host, data)
	}
	length := max(h.length, 0)
	if h.chunked {
		length = -1
	}
	if r.ContentLength != length {
		t.Fatalf("length %d, net/http %d\n%q", length, r.ContentLength, data)
	}
	if r.ProtoMinor != h.minor {
		t.Fatalf("version 1.%d, net/http 1.%d\n%q", h.minor, r.ProtoMinor, data)
	}
	for i := range h.count {
		f := &h.fields[i]
		if f.kind != plain {
			continue
		}
		found := false
		for _, v := range r.Header.Values(string(h.name(f))) {
			found = found || v == string(h.value(f))
		}
		if !found && !strings.EqualFold(string(h.name(f)), "trailer") && !strings.EqualFold(string(h.name(f)), "pragma") {
			t.Fatalf("field %q: %q, net/http has %q\n%q", h.name(f), h.value(f), r.Header.Values(string(h.name(f))), data)
		}
	}
}

// FuzzChunks does the same for chunked bodies.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nrest", "a\r\n", "1\r\na\r\n1\r\nb\r\n00\r\n\r\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		piece = max(1, piece%16)
		var c chunks
		var body []byte
		total, done := 0, false
		for total < len(data) && !done {
			p := data[total:min(len(data), total+piece)]
			for len(p) > 0 && !done {
				n, isData, end, err := c.next(p)
				if err != nil {
					return
				}
				if isData {
					body = append(body, p[:n]...)
				}
				p, done, total = p[n:], end, total+n
			}
		}
		if !done {
			return
		}
		request := append([]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"), data...)
		in := bufio.NewReader(bytes.NewReader(request))
		r, err := http.ReadRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := io.ReadAll(r.Body)
		if err != nil {
			// net/http bounds overhead relative to data; we bound it altogether.
			if strings.Contains(err.Error(), "excess") || strings.Contains(err.Error(), "too long") || strings.Contains(err.Error(), "too large") {
				return
			}
			t.Fatalf("taken, and refused by net/http: %v\n%q", err, data)
		}
		if !bytes.Equal(theirs, body) {
			t.Fatalf("body %q, net/http %q\n%q", body, theirs, data)
		}
		rest, _ := io.ReadAll(in)
		if !bytes.Equal(rest, data[total:]) {
			t.Fatalf("left %q, net/http leaves %q\n%q", data[total:], rest, data)
		}
	})
}

func FuzzResponseHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"))
	f.Add([]byte("HTTP/1.0 404 \nA: b\n\n"))
	f.Add([]byte("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := &head{}
		h.reset(true)
		if done, no := h.parse(data); !done || no != nil {
			return
		}
		compareResponse(t, h, data)
		out := appendResponse(nil, h, reply{})
		again := &head{}
		again.reset(true)
		if done, no := again.parse(out); !done || no != nil || again.bare || again.pos != len(out) {
			t.Fatalf("passed on as what we refuse: %v\n%q\n%q", no, data, out)
		}
		if again.status != h.status || again.length != h.length || again.chunked != h.chunked {
			t.Fatalf("passed on as something else\n%q\n%q", data, out)
		}
	})
}

// compareResponse holds what frames an answer against net/http's reading of it,
// where that has one: it knows no chunks in HTTP/1.0.
func compareResponse(t *testing.T, h *head, data []byte) {
	theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), &http.Request{Method: "GET"})
	if err != nil || h.minor == 0 || h.status < 200 || h.status == 204 || h.status == 304 {
		return
	}
	chunked := len(theirs.TransferEncoding) > 0
	if theirs.StatusCode != h.status || chunked != h.chunked || !chunked && theirs.ContentLength != h.length {
		t.Fatalf("%d, chunked %v, length %d; net/http %d, %v, %d\n%q", h.status, h.chunked, h.length, theirs.StatusCode, chunked, theirs.ContentLength, data)
	}
}

func BenchmarkHead(b *testing.B) {
	request := []byte("GET /some/path?with=query HTTP/1.1\r\nHost: hello.default.sonagi.localhost\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nCache-Control: max-age=0\r\n\r\n")
	h, o, out := &head{}, &origin{client: []byte("127.0.0.1"), proto: "http"}, make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		h.reset(false)
		if done, no := h.parse(request); !done || no != nil {
			b.Fatal(no)
		}
		out = appendRequest(out[:0], h, o)
	}
	b.ReportMetric(float64(len(request)), "bytes")
	_ = fmt.Sprint(len(out))
}
