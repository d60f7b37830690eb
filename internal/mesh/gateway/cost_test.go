// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
)

// TestNothingIsAllocatedPerRequest counts the allocations of the whole process
// while requests pass, with a client and an app that make none themselves.
func TestNothingIsAllocatedPerRequest(t *testing.T) {
	w := newWorld(t)
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				buf, text := make([]byte, 4096), []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: now\r\n\r\nhello")
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write(text); err != nil {
						return
					}
				}
			}()
		}
	}()
	w.serveOn("web", l)
	c, _ := w.talk()
	request := []byte("POST /some/path HTTP/1.1\r\nHost: web.example\r\nUser-Agent: test\r\nContent-Length: 3\r\n\r\nabc")
	buf := make([]byte, 4096)
	round := func(n int) {
		for range n {
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(buf); err != nil || string(buf[n-5:n]) != "hello" {
				t.Fatalf("%q, %v", buf[:n], err)
			}
		}
	}
	round(100)
	const requests = 2000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	round(requests)
	runtime.ReadMemStats(&after)
	per := float64(after.Mallocs-before.Mallocs) / requests
	t.Logf("%.3f allocations, %.1f bytes a request", per, float64(after.TotalAlloc-before.TotalAlloc)/requests)
	if per > 0.05 && !raceEnabled {
		t.Errorf("%.2f allocations a request", per)
	}
}

// TestIdleConnectionsAreCheap says what an idle connection costs, client and
// kernel left out.
func TestIdleConnectionsAreCheap(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(hello))
	const conns = 500
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range conns {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
		answer(t, bufio.NewReaderSize(c, 16), "GET")
	}
	runtime.GC()
	runtime.GC() // pools give up on the second
	runtime.ReadMemStats(&after)
	per := (after.HeapAlloc + after.StackInuse - before.HeapAlloc - before.StackInuse) / conns
	t.Logf("%d bytes a connection", per)
	if per > 24<<10 && !raceEnabled {
		t.Errorf("%d bytes a connection", per)
	}
}

// BenchmarkHeld is the time from the news that a pod is ready to the first byte
// that a client reads whose request was held for it.
func BenchmarkHeld(b *testing.B) {
	w := newWorld(b)
	p := w.serve("web", http.HandlerFunc(hello))
	p.gone()
	c, _ := w.talk()
	buf := make([]byte, 4096)
	i := 0
	for b.Loop() {
		b.StopTimer()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n")
		w.eventually(func() bool { return w.held("web") == 1 })
		i++
		p.endpoint.UID = fmt.Sprint(i)
		b.StartTimer()
		p.up()
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		p.gone()
		b.StartTimer()
	}
}
