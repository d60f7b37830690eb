// SPDX-License-Identifier: Apache-2.0

// Package hostile has clients that mean no good, while others go on as if
// nothing were: what is sent to harm is refused or bounded.
package hostile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

// host is that of the service everybody asks.
var host = sync.OnceValues(func() (string, error) { return p.Host("app", "default"), p.DeployApp(context.Background()) })

const (
	// grown is how much the node may take more than before, whatever is sent.
	grown = 160 << 20
	// slow is how late one in a hundred well-meant requests may be answered, on
	// two processors that are given to floods.
	slow = 2 * time.Second
)

// watched runs an attack while others use the service and somebody looks at
// the node's memory.
func watched(t *testing.T, attack func(t *testing.T, host string)) {
	t.Helper()
	h, err := host()
	if err != nil {
		t.Fatal(err)
	}
	part, err := p.Part("node")
	if err != nil {
		t.Fatal(err)
	}
	before, peak := memory(t, part.Pid), 0
	load := p.Load(h, "/", 2)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, memory(t, part.Pid))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	started := time.Now()
	attack(t, h)
	took := time.Since(started)
	close(stop)
	<-stopped
	answers := load.Stop()
	if failed := answers.Failed(); len(failed) > 0 {
		t.Error("others were not served:", failed)
	}
	late := answers.Percentile(99)
	t.Logf("%v; %d other requests, 99 of 100 within %v; memory %d MiB, at most %d", took.Round(time.Millisecond), len(answers), late.Round(time.Millisecond), before>>20, peak>>20)
	if late > slow {
		t.Errorf("others were served late: %v", late)
	}
	if peak > before+grown {
		t.Errorf("the node took %d MiB more", (peak-before)>>20)
	}
	if after, err := p.Part("node"); err != nil || after.Pid != part.Pid || after.Restarts != part.Restarts {
		t.Error("the node has ended:", after, err)
	}
}

// memory is what a process has in memory, in bytes.
func memory(t testing.TB, pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n << 10
		}
	}
	return 0
}

func dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(p.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// answer reads one answer, and what comes behind it until the end.
func answer(c net.Conn, within time.Duration) (status int, closed bool, rest string) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, !timedOut(err), ""
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	more, err := io.ReadAll(in)
	return resp.StatusCode, !timedOut(err), string(more)
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestSlowHeads has many clients that send a request's head a byte at a time,
// and as many that send nothing at all.
func TestSlowHeads(t *testing.T) {
	watched(t, func(t *testing.T, host string) {
		const clients = 400
		head := []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\nX: " + strings.Repeat("y", 500))
		var all sync.WaitGroup
		var mu sync.Mutex
		got := map[int]int{}
		for range clients {
			dial(t) // and nothing more
			c := dial(t)
			all.Go(func() {
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for i := range head {
						if _, err := c.Write(head[i : i+1]); err != nil {
							return
						}
						time.Sleep(200 * time.Millisecond)
					}
				}()
				status, closed, _ := answer(c, 30*time.Second)
				if !closed {
					t.Error("still open")
				}
				c.Close()
				<-sent
				mu.Lock()
				defer mu.Unlock()
				got[status]++
			})
		}
		all.Wait()
		if got[408]+got[0] != clients || got[408] < clients/2 {
			t.Errorf("%v, want 408 for all who still read", got)
		}
	})
}

// TestHalfOpen has clients that ask for what takes time and are gone, or have
// closed their side, or never read.
func TestHalfOpen(t *testing.T) {
	watched(t, func(t *testing.T, host string) {
		for i := range 300 {
			c := dial(t)
			fmt.Fprintf(c, "GET /events?n=100000&every=1ms HTTP/1.1\r\nHost: %s\r\n\r\n", host)
			switch i % 3 {
			case 0:
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			case 1:
				_ = c.(*net.TCPConn).CloseWrite()
			default: // it never reads
			}
		}
		time.Sleep(3 * time.Second) // they do nothing, and the others go on
	})
}

// TestHugeHeads sends heads without end.
func TestHugeHeads(t *testing.T) {
	line := "X-Filler: " + strings.Repeat("y", 1000) + "\r\n"
	for name, more := range map[string]string{
		"lines": line, "one line": strings.Repeat("z", 1024), "short lines": "a: b\r\n", "target": strings.Repeat("/x", 500),
	} {
		t.Run(name, func(t *testing.T) {
			watched(t, func(t *testing.T, host string) {
				var all sync.WaitGroup
				for range 20 {
					c := dial(t)
					all.Go(func() {
						go func() {
							begin := "GET / HTTP/1.1\r\nHost: " + host + "\r\nX: "
							if name == "target" {
								begin = "GET /"
							} else if name != "one line" {
								begin += "\r\n"
							}
							_, err := io.WriteString(c, begin)
							for err == nil {
								_, err = io.WriteString(c, more)
							}
						}()
						if status, closed, _ := answer(c, 15*time.Second); status != 431 && status != 0 || !closed {
							t.Errorf("%d, closed: %v", status, closed)
						}
						c.Close()
					})
				}
				all.Wait()
			})
		})
	}
}

// TestEndlessBodies sends bodies without end, of all shapes.
func TestEndlessBodies(t *testing.T) {
	block := strings.Repeat("y", 32<<10)
	for name, c := range map[string]struct {
		head, more string
		limit      time.Duration // for those that are legal, after which the client has enough
		status     int
	}{
		"chunks":     {"Transfer-Encoding: chunked\r\n\r\n", fmt.Sprintf("%x\r\n%s\r\n", len(block), block), 2 * time.Second, 0},
		"length":     {"Content-Length: 999999999999999\r\n\r\n", block, 2 * time.Second, 0},
		"tiny":       {"Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("1\r\ny\r\n", 5000), 2 * time.Second, 0},
		"extensions": {"Transfer-Encoding: chunked\r\n\r\n", "1;" + block + "\r\ny\r\n", 0, 400},
		"trailers":   {"Transfer-Encoding: chunked\r\n\r\n0\r\n", "X-Filler: " + block + "\r\n", 0, 400},
	} {
		t.Run(name, func(t *testing.T) {
			watched(t, func(t *testing.T, host string) {
				var all sync.WaitGroup
				for range 10 {
					conn := dial(t)
					all.Go(func() {
						if c.limit > 0 {
							_ = conn.SetWriteDeadline(time.Now().Add(c.limit))
						}
						done := make(chan struct{})
						go func() {
							defer close(done)
							_, err := fmt.Fprintf(conn, "POST /digest HTTP/1.1\r\nHost: %s\r\n%s", host, c.head)
							for err == nil {
								_, err = io.WriteString(conn, c.more)
							}
							if c.limit > 0 {
								conn.Close()
							}
						}()
						if c.limit > 0 {
							<-done
							return
						}
						if status, closed, _ := answer(conn, 15*time.Second); status != c.status && status != 0 || !closed {
							t.Errorf("%d, closed: %v", status, closed)
						}
						conn.Close()
					})
				}
				all.Wait()
			})
		})
	}
}

// TestPipelineThatNobodyReads asks and asks, and reads no answer.
func TestPipelineThatNobodyReads(t *testing.T) {
	watched(t, func(t *testing.T, host string) {
		request := []byte(strings.Repeat("GET /about HTTP/1.1\r\nHost: "+host+"\r\n\r\n", 100))
		var all sync.WaitGroup
		for range 20 {
			c := dial(t)
			all.Go(func() {
				_ = c.SetWriteDeadline(time.Now().Add(4 * time.Second))
				for {
					if _, err := c.Write(request); err != nil {
						return
					}
				}
			})
		}
		all.Wait()
	})
}

// smuggled are requests in which a second one may be hidden: each is refused,
// and what is behind it is not read.
var smuggled = map[string]string{
	"length and chunks":       "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"chunks and length":       "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
	"two lengths":             "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc",
	"list of lengths":         "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 3, 3\r\n\r\nabc",
	"signed length":           "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: +3\r\n\r\nabc",
	"chunked twice":           "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
	"chunked with tab":        "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
	"space before colon":      "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"folded line":             "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
	"folded with a tab":       "GET / HTTP/1.1\r\nHost: %s\r\nX: y\r\n\tz\r\n\r\n",
	"chunks in HTTP/1.0":      "POST / HTTP/1.0\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"bare line feed":          "GET / HTTP/1.1\r\nHost: %s\nX: y\r\n\r\n",
	"bare carriage return":    "GET / HTTP/1.1\r\nHost: %s\r\nX: y\rZ: w\r\n\r\n",
	"zero byte in a value":    "GET / HTTP/1.1\r\nHost: %s\r\nX: y\x00\r\n\r\n",
	"zero byte in a name":     "GET / HTTP/1.1\r\nHost: %s\r\nX\x00: y\r\n\r\n",
	"zero byte in a target":   "GET /\x00 HTTP/1.1\r\nHost: %s\r\n\r\n",
	"two hosts":               "GET / HTTP/1.1\r\nHost: %s\r\nHost: other.example\r\n\r\n",
	"no host":                 "GET / HTTP/1.1\r\nX: %s\r\n\r\n",
	"chunk size with 0x":      "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
	"chunk longer than said":  "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
	"chunk size overflows":    "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
	"line feed in chunk line": "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0;\nx\r\n\r\n",
	"length as a trailer":     "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
	"folded trailer":          "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n z\r\n\r\n",
	"another scheme":          "GET ftp://%s/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"a tunnel":                "CONNECT %s:443 HTTP/1.1\r\nHost: a\r\n\r\n",
	"TLS":                     "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03%s\r\n\r\n",
}

func TestSmuggling(t *testing.T) {
	watched(t, func(t *testing.T, host string) {
		for name, request := range smuggled {
			c := dial(t)
			fmt.Fprintf(c, request+"GET /about?hidden HTTP/1.1\r\nHost: %s\r\n\r\n", host, host)
			status, closed, rest := answer(c, 5*time.Second)
			if status < 400 || status > 505 || !closed || rest != "" {
				t.Errorf("%s: %d, closed: %v, then %q", name, status, closed, rest)
			}
		}
	})
}

// TestOddButRight is what looks odd, and has to work.
func TestOddButRight(t *testing.T) {
	h, err := host()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		request string
		want    []int
	}{
		"absolute target": {"GET http://%[1]s/ HTTP/1.1\r\nHost: other.example\r\n\r\n", []int{200}},
		"pipeline":        {"GET / HTTP/1.1\r\nHost: %[1]s\r\n\r\nPOST /digest HTTP/1.1\r\nHost: %[1]s\r\nContent-Length: 3\r\n\r\nabcGET /?status=204 HTTP/1.1\r\nHost: %[1]s\r\n\r\nPOST /digest HTTP/1.1\r\nHost: %[1]s\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: %[1]s\r\n\r\n", []int{200, 200, 204, 200, 200}},
		"old":             {"GET / HTTP/1.0\r\nHost: %[1]s\r\n\r\n", []int{200}},
		"upper case":      {"GET / HTTP/1.1\r\nHOST: %[1]s\r\nCONNECTION: KEEP-ALIVE\r\n\r\n", []int{200}},
		"dotted host":     {"GET / HTTP/1.1\r\nHost: %[1]s.\r\n\r\n", []int{200}},
	} {
		conn := dial(t)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, c.request, h)
		in := bufio.NewReader(conn)
		for i, want := range c.want {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(name, i, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != want {
				t.Errorf("%s, answer %d: %d, want %d", name, i, resp.StatusCode, want)
			}
		}
	}
	// Who asks whether to go on is told so before the body is sent.
	conn := dial(t)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "POST /digest HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", h)
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatal(line, err)
	}
	_, _ = in.ReadString('\n')
	_, _ = io.WriteString(conn, "abc")
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 200 {
		t.Error(resp, err)
	}
}

// TestH2Floods has clients abuse HTTP/2, four of them at a time.
func TestH2Floods(t *testing.T) {
	for name, flood := range map[string]func(f *http2.Framer, ask func(id uint32, end bool) error) error{
		"rapid reset": func(f *http2.Framer, ask func(uint32, bool) error) (err error) {
			for id := uint32(1); id < 1_000_000 && err == nil; id += 2 {
				if err = ask(id, true); err == nil {
					err = f.WriteRSTStream(id, http2.ErrCodeCancel)
				}
			}
			return err
		},
		"settings": func(f *http2.Framer, _ func(uint32, bool) error) (err error) {
			for err == nil {
				err = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			}
			return err
		},
		"ping": func(f *http2.Framer, _ func(uint32, bool) error) (err error) {
			for err == nil {
				err = f.WritePing(false, [8]byte{})
			}
			return err
		},
		"continuation": func(f *http2.Framer, _ func(uint32, bool) error) error {
			err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x40, 1, 'x', 1, 'y'}})
			for err == nil {
				err = f.WriteContinuation(1, false, bytes.Repeat([]byte{0x40, 1, 'x', 1, 'y'}, 100))
			}
			return err
		},
		"empty data": func(f *http2.Framer, ask func(uint32, bool) error) error {
			err := ask(1, false)
			for err == nil {
				err = f.WriteData(1, false, nil)
			}
			return err
		},
		"streams": func(f *http2.Framer, ask func(uint32, bool) error) (err error) {
			for id := uint32(1); id < 1_000_000 && err == nil; id += 2 {
				err = ask(id, false)
			}
			return err
		},
		"priority": func(f *http2.Framer, _ func(uint32, bool) error) (err error) {
			for id := uint32(1); err == nil; id += 2 {
				err = f.WritePriority(id%(1<<30), http2.PriorityParam{StreamDep: id + 2, Weight: 1})
			}
			return err
		},
		"window": func(f *http2.Framer, ask func(uint32, bool) error) error {
			err := ask(1, false)
			for err == nil {
				err = f.WriteWindowUpdate(1, 1)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			watched(t, func(t *testing.T, host string) {
				var all sync.WaitGroup
				for range 4 {
					c := dial(t)
					_ = c.SetDeadline(time.Now().Add(2 * time.Second))
					all.Go(func() {
						go io.Copy(io.Discard, c)
						_, _ = io.WriteString(c, http2.ClientPreface)
						f := http2.NewFramer(c, nil)
						_ = f.WriteSettings()
						var block bytes.Buffer
						enc := hpack.NewEncoder(&block)
						ended := flood(f, func(id uint32, end bool) error {
							block.Reset()
							for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", host}, {":path", "/digest"}} {
								_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
							}
							return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
						})
						if ended == nil {
							t.Error("it was taken to its end")
						}
						c.Close()
					})
				}
				all.Wait()
			})
		})
	}
}

// TestAfterwards: nothing is left of all that but what was.
func TestAfterwards(t *testing.T) {
	if _, err := host(); err != nil {
		t.Fatal(err)
	}
	part, err := p.Part("node")
	if err != nil {
		t.Fatal(err)
	}
	if part.Restarts != 0 {
		t.Error("the node was started again")
	}
	platform.Eventually(t, 15*time.Second, func() error {
		if n := connections(t); n > 0 {
			return fmt.Errorf("%d connections are still held", n)
		}
		return nil
	})
}

// connections is how many the gateway has not closed: those to its port, but
// for the listener and for what the kernel keeps of those that are closed.
func connections(t *testing.T) (n int) {
	const listening, waiting = "0A", "06"
	port := fmt.Sprintf(":%04X", p.GatewayPort)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); strings.HasSuffix(f[1], port) && f[3] != listening && f[3] != waiting {
				n++
			}
		}
	}
	return n
}
