// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"

	"github.com/sonagi/sonagi/internal/wire"
)

// AddTLS opens a listener to traffic from outside that comes by TLS, for the
// hosts that have a certificate in the table of the moment. net/http serves it:
// beside the encryption, what it costs more than the fast path is little.
func (g *Gateway) AddTLS(l net.Listener) {
	f := &face{listener: l, secure: true, proto: "https", handoff: wire.NewHandoff(l.Addr())}
	f.server = g.newServer(f)
	f.server.Protocols = new(http.Protocols)
	f.server.Protocols.SetHTTP1(true)
	f.server.Protocols.SetHTTP2(true)
	f.server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: g.certificate}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		l.Close()
		return
	}
	g.faces = append(g.faces, f)
	go func() {
		<-g.started
		if err := f.server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			g.Log.Error("serving TLS", "listener", l.Addr().String(), "err", err)
		}
	}()
}

// certificate chooses by the name that the client asks for. For a name that is
// not known there is none, which the client is told.
func (g *Gateway) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	var host [256]byte
	return g.Tables.Load().Certificate(text(normal(host[:0], []byte(hello.ServerName)))), nil
}

// redirect sends a client to the same resource by HTTPS.
func (g *Gateway) redirect(host, target string) *refusal {
	if g.SecurePort != 0 && g.SecurePort != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(int(g.SecurePort)))
	}
	if target == "" || target[0] != '/' {
		target = "/" // of OPTIONS *
	}
	return &refusal{status: http.StatusMovedPermanently, rule: "redirected to HTTPS", location: "https://" + host + target}
}
