// SPDX-License-Identifier: Apache-2.0

package record

import (
	"net"
	"runtime"
	"testing"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// TestRecordsAllocateNothing counts the allocations of the whole process while
// requests pass that are logged, and not sampled: neither the client nor the
// app makes any.
func TestRecordsAllocateNothing(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
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
	at := l.Addr().(*net.TCPAddr).AddrPort()
	w.pods.SetEndpoint(routing.Endpoint{Revision: web, UID: "b", IP: at.Addr().Unmap(), Ready: true})
	e := w.tables.Load().Edit()
	r, _ := e.Revision(web)
	moved := *r
	moved.Port = at.Port()
	e.SetRevision(&moved)
	w.tables.Swap(e.Table())

	w.records.Configure(Kourier, map[string]string{accessLogKey: "true"})
	w.records.Configure(Observability, map[string]string{"tracing-protocol": "grpc", "tracing-endpoint": "http://127.0.0.1:1", "tracing-sampling-rate": "0"})
	c, err := net.Dial("tcp", w.url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	request := []byte("POST /some/path HTTP/1.1\r\nHost: web.example\r\nUser-Agent: test\r\nX-Request-Id: 7\r\nContent-Length: 3\r\n\r\nabc")
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
	round(3000) // the journal's two buffers grow
	const requests = 2000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	round(requests)
	runtime.ReadMemStats(&after)
	per := float64(after.Mallocs-before.Mallocs) / requests
	t.Logf("%.3f allocations, %.1f bytes a request", per, float64(after.TotalAlloc-before.TotalAlloc)/requests)
	if per > 0.1 && !raceEnabled {
		t.Errorf("%.2f allocations a request", per)
	}
}
