// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// echo answers with what it was sent, as it comes.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	buf := make([]byte, 4096)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
		if err != nil {
			return
		}
	}
})

// talk opens a connection to the gateway.
func (w *world) talk() (net.Conn, *bufio.Reader) {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, bufio.NewReader(c)
}

// answer reads a response with its body.
func answer(t testing.TB, in *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func get(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHosts(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.Host) }))
	for _, c := range []struct {
		addr, host, want string
		status           int
	}{
		{w.addr, "web.example", "web.example", 200},
		{w.addr, "WEB.example", "WEB.example", 200},
		{w.addr, "web.example:8080", "web.example:8080", 200},
		{w.addr, "web.example.", "web.example.", 200},
		{w.addr, "nobody.example", "", 404},
		{w.addr, "internalkourier", "ok\n", 200},
		{w.addr, "", "", 404},
		{w.addr, strings.Repeat("x", 500) + ".example", "", 404},
		{w.addr, "[::1]:80", "", 404},
		{w.addr, "web.default.svc.cluster.local", "", 404},
		{w.internal, "web.default.svc.cluster.local", "web.default.svc.cluster.local", 200},
		{w.internal, "web.example", "web.example", 200},
	} {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", c.host)
		resp, body := answer(t, bufio.NewReader(conn), "GET")
		if resp.StatusCode != c.status || body != c.want {
			t.Errorf("%.40q: %d %q", c.host, resp.StatusCode, body)
		}
		conn.Close()
	}
}

func TestConnectionIsKept(t *testing.T) {
	w := newWorld(t)
	w.serve("web", echo)
	c, in := w.talk()
	for i := range 5 {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 1\r\n\r\n%d", i)
		if _, body := answer(t, in, "POST"); body != fmt.Sprint(i) {
			t.Fatalf("%d: %q", i, body)
		}
		// A host nobody has does not cost the connection.
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: nobody\r\nContent-Length: 1\r\n\r\nx")
		if resp, _ := answer(t, in, "POST"); resp.StatusCode != 404 || resp.Close {
			t.Fatalf("%d: %v", i, resp)
		}
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n")
	if resp, _ := answer(t, in, "GET"); !resp.Close {
		t.Error("the end of the connection was not announced")
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestPipeline(t *testing.T) {
	w := newWorld(t)
	w.serve("web", echo)
	c, in := w.talk()
	var all strings.Builder
	for i := range 20 {
		if i%3 == 2 {
			// Written in one go with its neighbours, and chunked.
			fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n%02d\r\n0\r\n\r\n", i)
		} else {
			fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 2\r\n\r\n%02d", i)
		}
	}
	go io.WriteString(c, all.String())
	for i := range 20 {
		if _, body := answer(t, in, "POST"); body != fmt.Sprintf("%02d", i) {
			t.Fatalf("%d: %q", i, body)
		}
	}
}

// TestPipelineBehindLongBody has the next request arrive in one piece with the
// end of a body that did not fit into a buffer.
func TestPipelineBehindLongBody(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	}))
	for _, chunked := range []bool{false, true} {
		c, in := w.talk()
		const size = 300_000
		var all bytes.Buffer
		for range 3 {
			if chunked {
				fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", size, strings.Repeat("x", size))
			} else {
				fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
			}
		}
		go c.Write(all.Bytes())
		for i := range 3 {
			if resp, body := answer(t, in, "POST"); body != fmt.Sprint(size) {
				t.Fatalf("%d: %d %q", i, resp.StatusCode, body)
			}
		}
	}
}

func TestBodies(t *testing.T) {
	w := newWorld(t)
	w.serve("web", echo)
	client := w.client()
	for _, size := range []int{0, 1, 4096, 8192, 65536, 1 << 20, 10 << 20} {
		for _, chunked := range []bool{false, true} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			var body io.Reader = bytes.NewReader(data)
			if chunked {
				body = struct{ io.Reader }{body}
			}
			resp, err := client.Post("http://web.example/", "application/octet-stream", body)
			if err != nil {
				t.Fatal(size, chunked, err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("%d bytes, chunked %v: got %d bytes, %v", size, chunked, len(got), err)
			}
			resp.Body.Close()
		}
	}
}

func TestResponsesOfAllKinds(t *testing.T) {
	w := newWorld(t)
	raw := map[string]string{
		"/length":     "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
		"/chunks":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
		"/trailer":    "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: u\r\n\r\n",
		"/close":      "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
		"/old":        "HTTP/1.0 200 OK\r\n\r\nhello",
		"/old-length": "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"/empty":      "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"/204":        "HTTP/1.1 204 No Content\r\n\r\n",
		"/304":        "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
		"/reason":     "HTTP/1.1 299 Rather Good\r\nContent-Length: 5\r\n\r\nhello",
		"/no-reason":  "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
		"/bare":       "HTTP/1.1 200 OK\nContent-Length: 5\nX-A: b\n\nhello",
		"/both":       "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"/twice":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"/hop":        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: x\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-A: b\r\n\r\nhello",
		"/early":      "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
	}
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveRaw(c, raw)
		}
	}()
	w.serveOn("web", l)
	for path := range raw {
		for _, version := range []int{1, 0} {
			for _, method := range []string{"GET", "HEAD"} {
				t.Run(fmt.Sprintf("%s%s in 1.%d", method, path, version), func(t *testing.T) {
					if method == "HEAD" && (path == "/close" || path == "/old") {
						t.Skip("is the same")
					}
					c, in := w.talk()
					for range 2 { // the second tells whether the first ended where it should
						fmt.Fprintf(c, "%s %s HTTP/1.%d\r\nHost: web.example\r\nConnection: keep-alive\r\n\r\n", method, path, version)
						resp, err := http.ReadResponse(in, &http.Request{Method: method})
						for err == nil && resp.StatusCode == 103 && version == 1 {
							if resp.Header.Get("Link") != "</x>" {
								t.Errorf("hint %v", resp.Header)
							}
							resp, err = http.ReadResponse(in, &http.Request{Method: method})
						}
						if err != nil {
							t.Fatal(err)
						}
						body, err := io.ReadAll(resp.Body)
						want := "hello"
						if method == "HEAD" || path == "/204" || path == "/304" || path == "/empty" {
							want = ""
						}
						if err != nil || string(body) != want {
							t.Fatalf("%q, %v; %v", body, err, resp)
						}
						if path == "/trailer" && method == "GET" && version == 1 && resp.Trailer.Get("X-T") != "u" {
							t.Errorf("trailer %v", resp.Trailer)
						}
						if path == "/hop" && (resp.Header.Get("X-Hop") != "" || resp.Header.Get("Keep-Alive") != "" || resp.Header.Get("X-A") != "b") {
							t.Errorf("%v", resp.Header)
						}
						if path == "/bare" && resp.Header.Get("X-A") != "b" {
							t.Errorf("%v", resp.Header)
						}
						if path == "/reason" && resp.Status != "299 Rather Good" {
							t.Error(resp.Status)
						}
						if resp.Close || resp.ProtoMinor != 1 {
							break
						}
						if version == 0 && resp.Header.Get("Connection") != "keep-alive" {
							break
						}
					}
				})
			}
		}
	}
}

// serveRaw answers requests with bytes.
func serveRaw(c net.Conn, answers map[string]string) {
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		text := answers[r.URL.Path]
		if r.Method == "HEAD" {
			head, _, _ := strings.Cut(text, "\r\n\r\n")
			if strings.HasPrefix(text, "HTTP/1.1 103") {
				_, rest, _ := strings.Cut(text, "\r\n\r\n")
				second, _, _ := strings.Cut(rest, "\r\n\r\n")
				head += "\r\n\r\n" + second
			}
			if r.URL.Path == "/bare" {
				head, _, _ = strings.Cut(text, "\n\n")
				text = head + "\n\n"
			} else {
				text = head + "\r\n\r\n"
			}
		}
		if _, err := io.WriteString(c, text); err != nil || strings.HasPrefix(text, "HTTP/1.0") || strings.Contains(text, "Connection: close") {
			return
		}
	}
}

func TestStreamsBothWays(t *testing.T) {
	w := newWorld(t)
	w.serve("web", echo)
	c, in := w.talk()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n")
	for i := range 5 {
		fmt.Fprintf(c, "5\r\nword%d\r\n", i)
		if i == 0 {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			in = bufio.NewReader(resp.Body)
		}
		// What was sent comes back before anything else is sent.
		word := make([]byte, 5)
		if _, err := io.ReadFull(in, word); err != nil || string(word) != fmt.Sprintf("word%d", i) {
			t.Fatalf("%d: %q, %v", i, word, err)
		}
	}
	io.WriteString(c, "0\r\n\r\n")
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestRequestTrailers(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(rw, r.Trailer.Get("X-Sum"))
	}))
	c, in := w.talk()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web.example\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
	if _, body := answer(t, in, "POST"); body != "7" {
		t.Errorf("%q", body)
	}
}

func TestExpect(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		io.Copy(rw, r.Body)
	}))
	c, in := w.talk()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 100 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, "hello")
	if _, body := answer(t, in, "POST"); body != "hello" {
		t.Errorf("%q", body)
	}
	// A refusal comes without the body being asked for.
	io.WriteString(c, "POST /no HTTP/1.1\r\nHost: web.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, _ := answer(t, in, "POST"); resp.StatusCode != 403 {
		t.Error(resp.Status)
	}

	// The same through net/http's client.
	client := w.client()
	client.Transport.(*http.Transport).ExpectContinueTimeout = 5 * time.Second
	got := 0
	r, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { got++ },
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return nil },
	}), "POST", "http://web.example/", strings.NewReader("body"))
	r.Header.Set("Expect", "100-continue")
	resp, err = client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "body" || got != 1 {
		t.Errorf("%q, %d", body, got)
	}
}

// TestEarlyAnswer has the app answer a long upload without reading it.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Error(rw, "too much", http.StatusRequestEntityTooLarge)
	}))
	c, in := w.talk()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 100000000\r\n\r\nand then not another byte")
	resp, body := answer(t, in, "POST")
	if resp.StatusCode != 413 || body != "too much\n" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	// Somebody who goes on sending gets the answer all the same.
	for range 20 {
		resp, err := w.client().Post("http://web.example/", "", struct{ io.Reader }{io.LimitReader(zeros{}, 1<<20)})
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 413 {
			t.Error(resp.Status)
		}
		resp.Body.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	upgraded := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "shout" || r.Header.Get("Connection") != "Upgrade" {
			http.Error(rw, "not asked to", http.StatusBadRequest)
			return
		}
		rw.Header().Set("Upgrade", "shout")
		rw.Header().Set("Connection", "Upgrade")
		rw.WriteHeader(http.StatusSwitchingProtocols)
		c, b, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		for {
			line, err := b.ReadString('\n')
			if err != nil {
				io.WriteString(c, "bye")
				return
			}
			io.WriteString(c, strings.ToUpper(line))
		}
	})
	w.serve("web", upgraded)
	w.serve("idle", upgraded, func(r *routing.Revision) { r.Idle = 500 * time.Millisecond })
	w.serve("start", upgraded, func(r *routing.Revision) { r.ResponseStart = 500 * time.Millisecond })
	const consent = "GET / HTTP/1.1\r\nHost: start.example\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n"
	speaks, heard := w.talk()
	io.WriteString(speaks, consent+"word\n")
	silent, cut := w.talk()
	io.WriteString(silent, consent)
	for _, in := range []*bufio.Reader{heard, cut} {
		if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
	}
	// Consent is not yet an answer, and one word is.
	if rest, err := io.ReadAll(cut); len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	io.WriteString(speaks, "late\n")
	for _, want := range []string{"WORD\n", "LATE\n"} {
		if line, err := heard.ReadString('\n'); line != want {
			t.Errorf("%q, %v", line, err)
		}
	}
	for _, host := range []string{"web", "idle"} {
		c, in := w.talk()
		// The first line comes with the head, before there is consent.
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s.example\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nfirst\n", host)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "shout" {
			t.Fatal(resp, err)
		}
		for _, word := range []string{"first", "second", "third"} {
			if word != "first" {
				fmt.Fprintln(c, word)
			}
			if line, err := in.ReadString('\n'); line != strings.ToUpper(word)+"\n" {
				t.Fatal(line, err)
			}
		}
		if host == "idle" {
			// Nobody speaks any more.
			if rest, err := io.ReadAll(in); len(rest) > 0 {
				t.Errorf("%q, %v", rest, err)
			}
			continue
		}
		// One direction ends, and the other goes on to its own end.
		c.(*net.TCPConn).CloseWrite()
		if rest, err := io.ReadAll(in); string(rest) != "bye" || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
	}
	if got := w.pods.Drained(t.Context(), rev("web"), ""); got != nil {
		t.Error(got)
	}
}

func TestRefusedUpgrade(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { http.Error(rw, "no", http.StatusForbidden) }))
	c, in := w.talk()
	for range 2 {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, _ := answer(t, in, "GET"); resp.StatusCode != 403 {
			t.Error(resp.Status)
		}
	}
}

func TestSmuggling(t *testing.T) {
	w := newWorld(t)
	reached := make(chan string, 100)
	w.serve("a", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		reached <- fmt.Sprintf("%s %s %q", r.Method, r.URL, body)
	}))
	w.edit(func(e *routing.Edit) {
		split := routing.NewSplit([]routing.Share{{Revision: rev("a"), Percent: 100}})
		e.SetRoute(&routing.Route{Name: rev("short"), Hosts: []routing.Host{{Host: "a", Split: split}}})
	})
	for name, c := range smuggling {
		t.Run(name, func(t *testing.T) {
			conn, in := w.talk()
			// The hidden request would be the second one.
			io.WriteString(conn, c.request+"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, _ := answer(t, in, "POST")
			if resp.StatusCode != c.status || !resp.Close {
				t.Errorf("%v", resp)
			}
			if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
				t.Errorf("then %q, %v", rest, err)
			}
		})
	}
	select {
	case r := <-reached:
		t.Error("the app was reached by", r)
	default:
	}
}

func TestBadChunksInTheMiddle(t *testing.T) {
	w := newWorld(t)
	begun, ended := make(chan bool, 1), make(chan error, 1)
	w.serve("web", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun <- true
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	}))
	c, in := w.talk()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	<-begun
	io.WriteString(c, "zz\r\n")
	if resp, _ := answer(t, in, "POST"); resp.StatusCode != 400 {
		t.Error(resp.Status)
	}
	if err := <-ended; err == nil {
		t.Error("the app took a part for the whole")
	}
}

func TestClientLeaves(t *testing.T) {
	w := newWorld(t)
	left := make(chan struct{}, 10)
	arrived := make(chan struct{}, 10)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			io.WriteString(rw, "begin")
			rw.(http.Flusher).Flush()
		}
		arrived <- struct{}{}
		if r.URL.Path == "/upload" {
			io.Copy(io.Discard, r.Body)
			left <- struct{}{}
			return
		}
		<-r.Context().Done()
		left <- struct{}{}
	}))
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n",
		"GET /stream HTTP/1.1\r\nHost: web.example\r\n\r\n",
		"POST /upload HTTP/1.1\r\nHost: web.example\r\nContent-Length: 99\r\n\r\nabc",
	} {
		c, _ := w.talk()
		io.WriteString(c, head)
		<-arrived
		c.Close()
		select {
		case <-left:
		case <-time.After(5 * time.Second):
			t.Errorf("the app was not told: %.20q", head)
		}
	}
	w.eventually(func() bool { return w.inFlight("web") == 0 })
}

func TestAppStopsInTheMiddle(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			rw.Header().Set("Content-Length", "100")
		}
		io.WriteString(rw, "half")
		rw.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	for _, path := range []string{"/length", "/chunks"} {
		resp, err := w.client().Get("http://web.example" + path)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: a part was taken for the whole: %q", path, body)
		}
		resp.Body.Close()
	}
}

func TestNonsenseFromTheApp(t *testing.T) {
	w := newWorld(t)
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveRaw(c, map[string]string{
				"/line":   "what?\r\n\r\n",
				"/field":  "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
				"/length": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
				"/chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
				"/huge":   "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 70_000) + "\r\n\r\n",
				"/101":    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
			})
		}
	}()
	w.serveOn("web", l)
	for _, path := range []string{"/line", "/field", "/length", "/chunks", "/huge", "/101"} {
		if status, body := get(t, w.client(), "http://web.example"+path); status != 502 {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
}

func TestBigHeads(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Big", r.Header.Get("X-Big"))
	}))
	big := strings.Repeat("x", 30_000)
	r, _ := http.NewRequest("GET", "http://web.example/", nil)
	r.Header.Set("X-Big", big)
	client := w.client()
	for range 3 {
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.Header.Get("X-Big") != big {
			t.Error(resp.Status, len(resp.Header.Get("X-Big")))
		}
	}
	r.Header.Set("X-Big", strings.Repeat("x", 100_000))
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 431 {
		t.Error(resp.Status)
	}
}

// eventually waits for something that no event tells of.
func (w *world) eventually(ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatal("it did not come to pass")
		}
	}
}
