// SPDX-License-Identifier: Apache-2.0

package lossless

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/sonagi/sonagi/test/platform"
)

// A crowd is a constant load of clients of every kind on one host. Each request
// is counted, and none is given up by the client: what fails was lost.
type crowd struct {
	t    *testing.T
	host string
	stop context.CancelFunc
	all  sync.WaitGroup

	mu   sync.Mutex
	done map[string]int
	lost map[string]int
}

// A client sends one request and reads its answer.
type client func(context.Context) (body string, err error)

const pause = 20 * time.Millisecond

// newCrowd starts the load.
func newCrowd(t *testing.T, host string) *crowd {
	ctx, stop := context.WithCancel(context.Background())
	c := &crowd{t: t, host: host, stop: stop, done: map[string]int{}, lost: map[string]int{}}
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	kinds := map[string][]client{
		"new connection": {c.get(&http.Transport{DisableKeepAlives: true}, "/")},
		"long":           {c.get(&http.Transport{}, "/?wait=1500ms"), c.get(&http.Transport{}, "/?wait=1500ms")},
		"upload":         {c.upload(&http.Transport{}), c.upload(h2)},
		"HTTP/2":         {c.get(h2, "/"), c.get(h2, "/"), c.get(h2, "/?wait=50ms")},
		"WebSocket":      {c.socket},
	}
	for range 3 {
		kinds["keep-alive"] = append(kinds["keep-alive"], c.get(&http.Transport{}, "/"))
	}
	for kind, clients := range kinds {
		c.done[kind] = 0
		for _, one := range clients {
			c.all.Go(func() {
				for ctx.Err() == nil {
					c.count(kind, one)
					select {
					case <-ctx.Done():
					case <-time.After(pause):
					}
				}
			})
		}
	}
	t.Cleanup(func() {
		stop()
		c.all.Wait()
		h2.CloseIdleConnections()
	})
	return c
}

func (c *crowd) count(kind string, one client) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := one(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[kind]++
	if err != nil {
		c.lost[time.Now().Format("15:04:05.000")+" "+kind+": "+err.Error()]++
	}
}

func (c *crowd) get(t *http.Transport, path string) client {
	return func(ctx context.Context) (string, error) { return c.do(ctx, t, http.MethodGet, path, nil) }
}

// upload is a request that must not be sent twice.
func (c *crowd) upload(t *http.Transport) client {
	text := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	return func(ctx context.Context) (string, error) {
		// Hidden from the client, so that it cannot send it again by itself.
		return c.do(ctx, t, http.MethodPost, "/", io.MultiReader(bytes.NewReader(text)))
	}
}

func (c *crowd) do(ctx context.Context, t *http.Transport, method, path string, body io.Reader) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.URL()+path, body)
	if err != nil {
		return "", err
	}
	req.Host = c.host
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s", resp.Status, text)
	}
	return string(text), err
}

// dial opens a WebSocket that sends back what it is sent.
func dial(ctx context.Context, host string) (*websocket.Conn, error) {
	config, err := websocket.NewConfig("ws://"+host+"/ws", "http://"+host)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(p.URL(), "http://"))
	if err != nil {
		return nil, err
	}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		conn.Close()
	}
	return ws, err
}

func echo(ws *websocket.Conn, text string) error {
	if err := ws.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if err := websocket.Message.Send(ws, text); err != nil {
		return err
	}
	var got string
	if err := websocket.Message.Receive(ws, &got); err != nil {
		return err
	}
	if got != text {
		return fmt.Errorf("echo of %q is %q", text, got)
	}
	return nil
}

// socket opens a new WebSocket for each message.
func (c *crowd) socket(ctx context.Context) (string, error) {
	ws, err := dial(ctx, c.host)
	if err != nil {
		return "", err
	}
	defer ws.Close()
	return "", echo(ws, "once")
}

// more waits until clients of each kind have had so many more answers.
func (c *crowd) more(n int) {
	c.t.Helper()
	c.mu.Lock()
	goal := map[string]int{}
	for kind, have := range c.done {
		goal[kind] = have + n
	}
	c.mu.Unlock()
	platform.Eventually(c.t, limit, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for kind, want := range goal {
			if have := c.done[kind]; have < want {
				return fmt.Errorf("%s: %d of %d answers", kind, have, want)
			}
		}
		return nil
	})
}

// end stops the load and fails the test if a request was lost.
func (c *crowd) end() {
	c.t.Helper()
	c.more(3)
	c.stop()
	c.all.Wait()
	sum, report := 0, []string{}
	for kind, n := range c.done {
		sum += n
		report = append(report, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(report)
	for text, n := range c.lost {
		c.t.Errorf("lost, of %d: %d × %s", sum, n, text)
	}
	c.t.Logf("%d requests: %s", sum, strings.Join(report, ", "))
}

// A stream is a WebSocket that stays open and is used all the time.
type stream struct {
	ws   *websocket.Conn
	over chan struct{}

	mu   sync.Mutex
	sent int
	err  error
	end  bool
}

func open(t *testing.T, host string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	ws, err := dial(ctx, host)
	if err != nil {
		t.Fatal("opening a stream:", err)
	}
	s := &stream{ws: ws, over: make(chan struct{})}
	go s.run()
	t.Cleanup(func() { _, _ = s.close() })
	return s
}

func (s *stream) run() {
	defer close(s.over)
	for i := 0; ; i++ {
		err := echo(s.ws, fmt.Sprint(i))
		s.mu.Lock()
		if s.err = err; err == nil {
			s.sent++
		}
		end := s.end || err != nil
		s.mu.Unlock()
		if end {
			return
		}
		time.Sleep(pause) // the pace of the client, nobody waits for it
	}
}

// more waits until so many more messages have come back.
func (s *stream) more(t *testing.T, n int) {
	t.Helper()
	goal := -1
	platform.Eventually(t, limit, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if goal < 0 {
			goal = s.sent + n
		}
		if s.err != nil {
			t.Fatalf("a stream broke after %d messages: %v", s.sent, s.err)
		}
		if s.sent < goal {
			return fmt.Errorf("%d of %d messages", s.sent, goal)
		}
		return nil
	})
}

// close ends the stream, which must have lived until now.
func (s *stream) close() (sent int, err error) {
	s.mu.Lock()
	s.end = true
	s.mu.Unlock()
	<-s.over
	s.ws.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.err
}
