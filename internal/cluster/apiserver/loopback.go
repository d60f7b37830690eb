// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"io"
	"net/http"
	"sync"

	"github.com/google/uuid"
	"k8s.io/client-go/rest"
)

// loopbackHost stands where clients want a host; nobody resolves it.
const loopbackHost = "https://kubernetes.default.svc"

// A loopback is the way from this process to the handler: a RoundTripper that
// calls it. Everything a request meets on the wire (authentication, admission,
// encoding) it meets here too; only the wire is missing.
type loopback struct {
	token   string
	handler http.Handler
	opened  chan struct{}
}

func newLoopback() *loopback {
	return &loopback{token: uuid.NewString(), opened: make(chan struct{})}
}

func (l *loopback) open(h http.Handler) {
	l.handler = h
	close(l.opened)
}

func (l *loopback) config() *rest.Config {
	return &rest.Config{
		Host:        loopbackHost,
		BearerToken: l.token,
		Transport:   l,
		QPS:         -1,
		ContentConfig: rest.ContentConfig{
			ContentType:        "application/vnd.kubernetes.protobuf",
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
		DisableCompression: true,
	}
}

// RoundTrip hands a request to the handler and returns when its header is
// known. The handler goes on writing the body while the caller reads.
func (l *loopback) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-l.opened:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	// The server's context is a new one: values of the caller's context (a
	// request it is itself serving, say) must not leak into this request.
	ctx, cancel := context.WithCancel(context.Background())
	release := context.AfterFunc(r.Context(), cancel)
	done := func() { release(); cancel() }
	answer := &answer{
		request: r,
		header:  http.Header{},
		known:   make(chan *http.Response, 1),
		body:    newPipe(done),
	}
	go func() {
		defer done()
		answer.serve(l.handler, incoming(ctx, r))
	}()
	select {
	case response := <-answer.known:
		return response, nil
	case <-r.Context().Done():
		_ = answer.body.Close()
		return nil, r.Context().Err()
	}
}

// incoming is the request as a server would have parsed it.
func incoming(ctx context.Context, r *http.Request) *http.Request {
	in := r.Clone(ctx)
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	in.RequestURI = r.URL.RequestURI()
	in.RemoteAddr = "127.0.0.1:0"
	in.URL.Scheme, in.URL.Host = "", ""
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	return in
}

// An answer is the ResponseWriter of one call.
type answer struct {
	request *http.Request
	header  http.Header
	once    sync.Once
	known   chan *http.Response
	body    *pipe
}

func (a *answer) serve(h http.Handler, r *http.Request) {
	defer func() {
		// A handler aborts by panic, once it can no longer say so in the header.
		if recover() != nil {
			a.WriteHeader(http.StatusInternalServerError)
			a.body.end(io.ErrUnexpectedEOF)
			return
		}
		a.WriteHeader(http.StatusOK)
		a.body.end(io.EOF)
	}()
	defer r.Body.Close()
	h.ServeHTTP(a, r)
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	a.once.Do(func() {
		a.known <- &http.Response{
			Status:        http.StatusText(status),
			StatusCode:    status,
			Proto:         "HTTP/2.0",
			ProtoMajor:    2,
			Header:        a.header.Clone(),
			ContentLength: -1,
			Body:          a.body,
			Request:       a.request,
		}
	})
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.write(p)
}

func (a *answer) Flush() { a.WriteHeader(http.StatusOK) }

// CloseNotify is how upstream recognizes a writer that can flush.
func (a *answer) CloseNotify() <-chan bool { return make(chan bool) }
