// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strconv"

	"github.com/sonagi/sonagi/internal/wire"
)

// AddTLS opens a listener to traffic from outside that comes by TLS, for the
// hosts that have a certificate in the table of the moment. Behind the
// handshake a connection is served like one that was handed over: beside the
// encryption, what that costs more than the fast path is little.
func (g *Gateway) AddTLS(l net.Listener) {
	g.open(&face{listener: l, proto: "https", handoff: wire.NewHandoff(l.Addr()), tls: &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: g.certificate,
	}})
}

// shakeHands has a client agree on TLS, in the time that it has for the head of
// a request, and hands its connection over.
func (g *Gateway) shakeHands(f *face, nc net.Conn) {
	c := tls.Server(nc, f.tls)
	ctx, cancel := context.WithTimeout(context.Background(), g.Times.Head)
	defer cancel()
	if c.HandshakeContext(ctx) != nil || !f.handoff.Give(&guarded{Conn: c}, nil) {
		nc.Close()
	}
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
