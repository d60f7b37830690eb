// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func TestHeldAtZero(t *testing.T) {
	w := newWorld(t)
	l := w.app(http.HandlerFunc(hello))
	p := w.serveOn("web", l)
	p.gone()
	const clients = 1000
	var done sync.WaitGroup
	var failed atomic.Int32
	for i := range clients {
		done.Go(func() {
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if i%2 == 0 {
				fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
			} else {
				fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 5\r\n\r\nhello")
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != 200 {
				failed.Add(1)
				t.Error(resp, err)
			}
		})
	}
	w.eventually(func() bool { return w.held("web") == clients })
	w.mu.Lock()
	pokes := len(w.pokes)
	w.mu.Unlock()
	if pokes == 0 || pokes > 10 {
		t.Errorf("%d pokes for one need", pokes)
	}
	p.up()
	done.Wait()
	if n := w.inFlight("web"); n != 0 {
		t.Errorf("%d requests are still counted", n)
	}
}

func TestHeldClientLeaves(t *testing.T) {
	w := newWorld(t)
	w.route(routing.Revision{Name: rev("web"), Timeout: time.Minute})
	c, _ := w.talk()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\nGET /next HTTP/1.1\r\n")
	w.eventually(func() bool { return w.held("web") == 1 })
	c.Close()
	w.eventually(func() bool { return w.inFlight("web") == 0 })
}

func TestHeldTooLong(t *testing.T) {
	w := newWorld(t)
	w.route(routing.Revision{Name: rev("web"), Timeout: 200 * time.Millisecond})
	client := w.client()
	started := time.Now()
	if status, body := get(t, client, "http://web.example/"); status != 504 || body != "activator request timeout" {
		t.Errorf("%d %q", status, body)
	}
	if d := time.Since(started); d < 200*time.Millisecond {
		t.Errorf("after %v", d)
	}
	w.eventually(func() bool { return w.inFlight("web") == 0 })
}

func TestUnknownYet(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Times.Table = 300 * time.Millisecond })
	p := w.serve("web", http.HandlerFunc(hello))
	w.tables.Swap(nil)
	got := make(chan string)
	go func() {
		_, body := get(t, w.client(), "http://web.example/")
		got <- body
	}()
	// The route comes first, its revision later.
	split := routing.NewSplit([]routing.Share{{Revision: rev("web"), Percent: 100}})
	w.edit(func(e *routing.Edit) {
		e.SetRoute(&routing.Route{Name: rev("web"), Hosts: []routing.Host{{Host: "web.example", Split: split}}})
	})
	w.edit(func(e *routing.Edit) {
		e.SetRevision(&routing.Revision{Name: rev("web"), Port: p.l.Addr().(*net.TCPAddr).AddrPort().Port(), Timeout: time.Minute})
	})
	if body := <-got; body != "hello" {
		t.Errorf("%q", body)
	}
	w.edit(func(e *routing.Edit) { e.DeleteRevision(rev("web")) })
	if status, _ := get(t, w.client(), "http://web.example/"); status != 503 {
		t.Error(status)
	}
	w.tables.Swap(nil)
	if status, _ := get(t, w.client(), "http://web.example/"); status != 503 {
		t.Error(status)
	}
}

func TestTimeouts(t *testing.T) {
	w := newWorld(t)
	app := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/length":
			rw.Header().Set("Content-Length", "50")
			fallthrough
		case "/begin":
			io.WriteString(rw, "begin")
			rw.(http.Flusher).Flush()
		case "/drip":
			for range 10 {
				io.WriteString(rw, "drip ")
				rw.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
			return
		}
		<-r.Context().Done()
	})
	w.serve("total", app, func(r *routing.Revision) { r.Timeout = 700 * time.Millisecond })
	w.serve("start", app, func(r *routing.Revision) { r.ResponseStart = 300 * time.Millisecond })
	w.serve("idle", app, func(r *routing.Revision) { r.Idle = 400 * time.Millisecond })
	t.Run("of", func(t *testing.T) {
		for _, c := range []struct {
			host, path, body string
			status           int
			cut              bool
		}{
			{"total", "/", "request timeout", 504, false},
			{"total", "/begin", "beginrequest timeout", 200, false},
			{"total", "/length", "begin", 200, true},
			{"start", "/", "request timeout", 504, false},
			{"start", "/drip", strings.Repeat("drip ", 10), 200, false},
			{"idle", "/", "request timeout", 504, false},
			{"idle", "/begin", "beginrequest timeout", 200, false},
			{"idle", "/drip", strings.Repeat("drip ", 10), 200, false},
		} {
			for _, h2 := range []bool{false, true} {
				t.Run(fmt.Sprint(c.host, c.path, h2), func(t *testing.T) {
					t.Parallel()
					client := w.client()
					if h2 {
						client = w.h2client()
					}
					resp, err := client.Get("http://" + c.host + ".example" + c.path)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					body, err := io.ReadAll(resp.Body)
					if resp.StatusCode != c.status || string(body) != c.body || (err != nil) != c.cut {
						t.Errorf("%d %q %v", resp.StatusCode, body, err)
					}
				})
			}
		}
	})
	w.eventually(func() bool { return w.inFlight("total")+w.inFlight("start")+w.inFlight("idle") == 0 })
}

// TestConnectionOutlivesTimeout has one connection see both limits, and go on.
func TestConnectionOutlivesTimeout(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-r.Context().Done()
		}
		hello(rw, r)
	}), func(r *routing.Revision) { r.Timeout = 300 * time.Millisecond })
	w.route(routing.Revision{Name: rev("none"), Timeout: 100 * time.Millisecond})
	c, in := w.talk()
	for range 2 {
		for _, one := range []struct {
			host, path, body string
			status           int
		}{
			{"web", "/slow", "request timeout", 504},
			{"web", "/", "hello", 200},
			{"none", "/", "activator request timeout", 504},
			{"web", "/", "hello", 200},
		} {
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s.example\r\n\r\n", one.path, one.host)
			if resp, body := answer(t, in, "GET"); resp.StatusCode != one.status || body != one.body || resp.Close {
				t.Fatalf("%s%s: %v %q", one.host, one.path, resp, body)
			}
		}
	}
}

func TestTimeoutWhileUploading(t *testing.T) {
	w := newWorld(t)
	w.serve("web", echo, func(r *routing.Revision) { r.Timeout = 500 * time.Millisecond })
	c, in := w.talk()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 99\r\n\r\n")
	if resp, body := answer(t, in, "POST"); resp.StatusCode != 504 || body != "request timeout" {
		t.Errorf("%v %q", resp.Status, body)
	}
}

func TestConcurrencyIsExact(t *testing.T) {
	w := newWorld(t)
	const limit, requests = 3, 300
	var inside [2]atomic.Int32
	app := func(i int) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if n := inside[i].Add(1); n > limit {
				t.Errorf("%d requests in one pod", n)
			}
			time.Sleep(time.Millisecond) // a request takes a while
			inside[i].Add(-1)
			hello(rw, r)
		})
	}
	// Two pods with one port: they need addresses of their own.
	first := listen(t)
	second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port(first)))
	if err != nil {
		t.Fatal(err)
	}
	w.run(first, app(0))
	w.run(second, app(1))
	w.serveOn("web", first, func(r *routing.Revision) { r.Concurrency = limit })
	w.pods.SetEndpoint(routing.Endpoint{Revision: rev("web"), UID: "other", IP: addr(second), Ready: true})
	var all sync.WaitGroup
	for i := range 30 {
		client := w.client()
		if i%3 == 0 {
			client = w.h2client()
		}
		all.Go(func() {
			for range requests / 30 {
				if status, body := get(t, client, "http://web.example/"); status != 200 {
					t.Error(status, body)
				}
			}
		})
	}
	all.Wait()
}

func TestQueueIsBounded(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		<-release
		hello(rw, r)
	}), func(r *routing.Revision) { r.Concurrency, r.Queue = 1, 10 })
	var all sync.WaitGroup
	for range 11 {
		all.Go(func() {
			if status, body := get(t, w.client(), "http://web.example/"); status != 200 {
				t.Error(status, body)
			}
		})
	}
	w.eventually(func() bool { return w.inFlight("web") == 11 })
	for _, client := range []*http.Client{w.client(), w.h2client()} {
		if status, body := get(t, client, "http://web.example/"); status != 503 || body != "pending request queue full\n" {
			t.Errorf("%d %q", status, body)
		}
	}
	close(release)
	all.Wait()
}

func TestIdleConnectionWasClosed(t *testing.T) {
	// An app that closes each connection a moment after its first answer, as
	// if it had been idle for too long.
	w := newWorld(t)
	l := listen(t)
	var served atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				io.Copy(io.Discard, r.Body)
				served.Add(1)
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}()
		}
	}()
	w.serveOn("web", l)
	client := w.client()
	for i := range 200 {
		var status int
		if i%2 == 0 {
			status, _ = get(t, client, "http://web.example/")
		} else {
			resp, err := client.Post("http://web.example/", "", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			status = resp.StatusCode
		}
		if status == 502 && i%2 == 1 {
			continue // it may have been closed between the look and the write: a POST is not sent twice
		}
		if status != 200 {
			t.Fatal(i, status)
		}
	}
	if n := served.Load(); n < 150 || n > 200 {
		t.Errorf("%d requests were served", n)
	}
}

// TestPodDies has a pod die with requests in it; another is there for those
// that may be sent again.
func TestPodDies(t *testing.T) {
	w := newWorld(t)
	first := listen(t)
	second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port(first)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Close() })
	go func() {
		for {
			c, err := first.Accept()
			if err != nil {
				return
			}
			// Takes the request, and dies.
			_, _ = c.Read(make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	w.run(second, http.HandlerFunc(hello))
	w.serveOn("web", first)
	w.pods.SetEndpoint(routing.Endpoint{Revision: rev("web"), UID: "zzz", IP: addr(second), Ready: true})
	client := w.client()
	lost := 0
	for range 2 {
		// A POST is not sent twice: nobody knows what the first has done.
		resp, err := client.Post("http://web.example/", "", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 502 {
			lost++
		}
	}
	if lost != 1 {
		t.Errorf("%d of two POSTs were lost, want the one that was in the pod that died", lost)
	}
	for i := range 20 {
		if status, body := get(t, client, "http://web.example/"); status != 200 {
			t.Fatal(i, status, body)
		}
	}
}

// TestPodCannotBeReached has a pod that is said to be ready and is not there:
// requests go to the other, or wait for one.
func TestPodCannotBeReached(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		w := newWorld(t)
		l := w.app(http.HandlerFunc(hello))
		w.serveOn("web", l)
		dead := routing.Endpoint{Revision: rev("web"), UID: "a", IP: addr(l).Next(), Ready: true} // nobody listens there
		w.pods.SetEndpoint(dead)
		client := w.client()
		if h2 {
			client = w.h2client()
		}
		for range 20 {
			if status, body := get(t, client, "http://web.example/"); status != 200 {
				t.Error(status, body)
			}
			resp, err := client.Post("http://web.example/", "", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Error(resp.Status)
			}
		}

		// With the dead one only, a request is held until there is another.
		w.route(routing.Revision{Name: rev("late"), Port: port(l), Timeout: 10 * time.Second})
		dead.Revision = rev("late")
		w.pods.SetEndpoint(dead)
		got := make(chan int)
		go func() {
			status, _ := get(t, client, "http://late.example/")
			got <- status
		}()
		w.eventually(func() bool { return w.held("late") == 1 })
		w.pods.SetEndpoint(routing.Endpoint{Revision: rev("late"), UID: "b", IP: addr(l), Ready: true})
		if status := <-got; status != 200 {
			t.Error(status)
		}
	}
}

func TestLeavingPodFinishesItsRequests(t *testing.T) {
	w := newWorld(t)
	begun, release := make(chan bool, 2), make(chan bool)
	old := w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		begun <- true
		<-release
		io.WriteString(rw, "old")
	}))
	got := make(chan string, 2)
	for _, client := range []*http.Client{w.client(), w.h2client()} {
		go func() {
			_, body := get(t, client, "http://web.example/")
			got <- body
		}()
		<-begun
	}
	old.gone()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.pods.Drained(ctx, rev("web"), old.endpoint.UID); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("drained with requests in it:", err)
	}
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "new") }))
	if _, body := get(t, w.client(), "http://web.example/"); body != "new" {
		t.Errorf("%q", body)
	}
	close(release)
	for range 2 {
		if body := <-got; body != "old" {
			t.Errorf("%q", body)
		}
	}
	if err := w.pods.Drained(t.Context(), rev("web"), old.endpoint.UID); err != nil {
		t.Error(err)
	}
}

// TestRollingPods replaces pods under load: nobody may notice.
func TestRollingPods(t *testing.T) {
	w := newWorld(t)
	first := w.serve("web", http.HandlerFunc(hello))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var served atomic.Int32
	for i := range 8 {
		client := w.client()
		if i%4 == 0 {
			client = w.h2client()
		}
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Post("http://web.example/", "", strings.NewReader("x"))
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Error(resp.Status)
				}
				served.Add(1)
			}
		})
	}
	p := port(first.l)
	last, lastServer := first, (*http.Server)(nil)
	for i := range 30 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.1.%d:%d", i+1, p))
		if err != nil {
			t.Fatal(err)
		}
		server := w.run(l, http.HandlerFunc(hello))
		next := &pod{w: w, l: l, endpoint: routing.Endpoint{Revision: rev("web"), UID: fmt.Sprintf("pod-%d", i), IP: addr(l), Ready: true}}
		if i%3 == 2 {
			last.gone() // at zero for a moment
			next.up()
		} else {
			next.up()
			last.gone()
		}
		if err := w.pods.Drained(t.Context(), rev("web"), last.endpoint.UID); err != nil {
			t.Fatal(err)
		}
		if lastServer != nil {
			lastServer.Close()
		}
		last, lastServer = next, server
		at := served.Load()
		w.eventually(func() bool { return served.Load() > at+10 })
	}
	close(stop)
	clients.Wait()
}

func TestSlowClients(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.Times.Head, o.Times.Idle, o.Times.Body = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	})
	w.serve("web", echo)
	t.Run("head", func(t *testing.T) {
		c, in := w.talk()
		go func() {
			for _, b := range []byte("GET / HTTP/1.1\r\nHost: web.example\r\nX: " + strings.Repeat("y", 1000)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond) // slow, and never idle
			}
		}()
		if resp, _ := answer(t, in, "GET"); resp.StatusCode != 408 {
			t.Error(resp.Status)
		}
	})
	t.Run("idle", func(t *testing.T) {
		c, in := w.talk()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
		answer(t, in, "GET")
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	t.Run("silent", func(t *testing.T) {
		_, in := w.talk()
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	t.Run("body", func(t *testing.T) {
		c, in := w.talk()
		io.WriteString(c, "PUT / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 10\r\n\r\n")
		if resp, _ := answer(t, in, "PUT"); resp.StatusCode != 408 {
			t.Error(resp.Status)
		}
	})
}

func TestClientThatDoesNotRead(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.Copy(rw, io.LimitReader(zeros{}, 100<<20)) }),
		func(r *routing.Revision) { r.Timeout = 500 * time.Millisecond })
	c, _ := w.talk()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
	w.eventually(func() bool { return w.inFlight("web") == 1 })
	w.eventually(func() bool { return w.inFlight("web") == 0 })
}

func TestStopLosesNothing(t *testing.T) {
	begun, release := make(chan bool), make(chan bool)
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- true
			<-release
		}
		hello(rw, r)
	}))
	idle, idleIn := w.talk()
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
	answer(t, idleIn, "GET")
	c, in := w.talk()
	io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: web.example\r\n\r\n")
	<-begun
	w.stop()
	if _, err := idleIn.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error("an idle connection is kept:", err)
	}
	close(release)
	if resp, body := answer(t, in, "GET"); body != "hello" || !resp.Close {
		t.Errorf("%v %q", resp, body)
	}
	<-w.ended
	if _, err := net.Dial("tcp", w.addr); err == nil {
		t.Error("the listener is still open")
	}
}

func TestObserved(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(418) }))
	get(t, w.client(), "http://web.example/")
	get(t, w.h2client(), "http://web.example/")
	get(t, w.client(), "http://nobody.example/")
	w.eventually(func() bool { s := w.sums("web"); return len(s) == 1 && s[0].Count() == 2 })
	if s := w.sums("web")[0]; s.Status != 418 || s.Took <= 0 || s.Method.String() != "GET" {
		t.Errorf("%+v", s)
	}
}
