// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

type contextKey struct{}

func call(t *testing.T, ctx context.Context, h http.HandlerFunc) (*http.Response, error) {
	t.Helper()
	l := newLoopback()
	l.open(h)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, loopbackHost+"/api?x=1", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	return l.RoundTrip(r)
}

func TestLoopbackIsARequestLikeAnyOther(t *testing.T) {
	ctx := context.WithValue(t.Context(), contextKey{}, "the caller's")
	response, err := call(t, ctx, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/api" || r.RequestURI != "/api?x=1" || r.Host != "kubernetes.default.svc" || r.URL.Host != "" || string(body) != "body" {
			t.Errorf("got %s %s %s %q", r.Host, r.URL, r.RequestURI, body)
		}
		if r.Context().Value(contextKey{}) != nil {
			t.Error("the caller's context leaked")
		}
		w.Header().Set("X-Kind", "answer")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("short and stout"))
		w.Header().Set("X-Kind", "too late")
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusTeapot || response.Header.Get("X-Kind") != "answer" || string(text) != "short and stout" || err != nil {
		t.Errorf("got %d %v %q %v", response.StatusCode, response.Header, text, err)
	}
}

func TestLoopbackStreams(t *testing.T) {
	more, ended := make(chan struct{}), make(chan struct{})
	response, err := call(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		_, _ = w.Write([]byte("first"))
		<-more
		_, _ = w.Write([]byte("second"))
		<-r.Context().Done()
	})
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 100)
	for _, want := range []string{"first", "second"} {
		n, err := response.Body.Read(buffer)
		if got := string(buffer[:n]); got != want || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if want == "first" {
			close(more)
		}
	}
	// The client goes away, as a watch does: the handler learns of it.
	_ = response.Body.Close()
	<-ended
}

func TestLoopbackEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	_, err := call(t, ctx, func(_ http.ResponseWriter, r *http.Request) {
		defer close(ended)
		cancel()
		<-r.Context().Done()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	<-ended
}

func TestLoopbackSurvivesAPanic(t *testing.T) {
	response, err := call(t, t.Context(), func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half"))
		panic(http.ErrAbortHandler)
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(response.Body); string(text) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestPipeIsBounded(t *testing.T) {
	p := newPipe(func() {})
	written := make(chan int)
	go func() {
		total := 0
		for {
			n, err := p.write(make([]byte, pipeLimit))
			if err != nil {
				written <- total
				return
			}
			total += n
		}
	}()
	if _, err := io.CopyN(io.Discard, p, 3*pipeLimit); err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
	if total := <-written; total > 6*pipeLimit {
		t.Errorf("%d bytes were taken from the writer, %d were read", total, 3*pipeLimit)
	}
}

func TestListenOnSeveralAddresses(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	taken := "127.0.0.1:" + port
	if _, err := listen(t.Context(), []string{taken}); err == nil || !strings.Contains(err.Error(), taken+" is already in use by apiserver.test (process ") {
		t.Errorf("err = %v", err)
	}
	free.Close()

	// The third address belongs to no interface, yet.
	m, err := listen(t.Context(), []string{taken, "127.0.0.2:" + port, "198.51.100.1:" + port})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, address := range []string{taken, "127.0.0.2:" + port} {
		client, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		server, err := m.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = server.Write([]byte("hello")); server.Close() }()
		if text, err := io.ReadAll(client); !bytes.Equal(text, []byte("hello")) || err != nil {
			t.Errorf("%s: %q %v", address, text, err)
		}
		client.Close()
	}
	m.Close()
	if _, err := m.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
