// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// newTransport is what all requests of a store go through, so that connections
// are shared. What is certified by nobody is accepted only where plain HTTP
// would be.
func newTransport(anyCertificate bool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: anyCertificate},
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // digests are of the bytes as they are sent
		MaxIdleConns:           16,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// insecureHosts are the registries that may be spoken to without TLS.
type insecureHosts struct {
	hosts    map[string]bool
	prefixes []netip.Prefix
}

func newInsecureHosts(names []string) insecureHosts {
	in := insecureHosts{hosts: map[string]bool{}}
	for _, n := range names {
		if p, err := netip.ParsePrefix(n); err == nil {
			in.prefixes = append(in.prefixes, p)
			continue
		}
		in.hosts[strings.ToLower(n)] = true
	}
	return in
}

func (in insecureHosts) has(hostport string) bool {
	hostport = strings.ToLower(hostport)
	host := hostOf(hostport)
	if in.hosts[hostport] || in.hosts[host] {
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	for _, p := range in.prefixes {
		if p.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}

func hostOf(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// isLoopback is about the name alone: a name that merely resolves to this
// machine is not loopback.
func isLoopback(hostport string) bool {
	host := hostOf(hostport)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// A gate keeps requests on TLS. The registry client below it would by itself
// speak plain HTTP to private addresses, and follow redirects to anywhere: a
// registry on the internet must not make this machine ask its own services.
type gate struct {
	inner http.RoundTripper
	host  string // registry of this session
	plain insecureHosts
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if isLoopback(r.URL.Host) && !isLoopback(g.host) && !g.plain.has(r.URL.Host) {
		return nil, fmt.Errorf("%w: %s sends to %s", ErrInsecure, g.host, r.URL.Host)
	}
	if r.URL.Scheme != "https" && !g.allowsPlain(r.URL.Host) {
		return nil, fmt.Errorf("%w for %s: only for loopback addresses and registries that are set as insecure", ErrInsecure, r.URL.Host)
	}
	return g.inner.RoundTrip(r)
}

func (g *gate) allowsPlain(host string) bool { return isLoopback(host) || g.plain.has(host) }

// A stallError is a registry that has stopped sending.
type stallError struct {
	host  string
	limit time.Duration
}

func (e *stallError) Error() string {
	return fmt.Sprintf("registry %s sent nothing for %s", e.host, e.limit)
}

func (e *stallError) Unwrap() error { return ErrTimeout }

// A stallGuard ends requests whose answer does not come, or stops coming.
type stallGuard struct {
	inner http.RoundTripper
	limit time.Duration
}

func (g *stallGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	stalled := &stallError{r.URL.Host, g.limit}
	timer := time.AfterFunc(g.limit, func() { cancel(stalled) })
	resp, err := g.inner.RoundTrip(r.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if context.Cause(ctx) == error(stalled) {
			err = stalled
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &guardedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, stalled: stalled}
	return resp, nil
}

// A guardedBody measures only the time that its reader waits: a disk that is
// slow to take a layer does not make the registry late.
type guardedBody struct {
	io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	stalled *stallError
	waited  time.Duration // since enough last came
	got     int
}

// enough is how much must come within the limit: a registry that sends a byte
// now and then has stalled too.
const enough = 4 << 10

func (b *guardedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stalled.limit - b.waited)
	start := time.Now()
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	b.waited += time.Since(start)
	if b.got += n; b.got >= enough {
		b.got, b.waited = 0, 0
	}
	if err != nil && err != io.EOF && context.Cause(b.ctx) == error(b.stalled) {
		err = b.stalled
	}
	return n, err
}

func (b *guardedBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}
