// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// proof is a certificate for a host that signs itself.
func proof(t *testing.T, host string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// secure gives NAME.example of the app's route a certificate.
func (w *world) secure(name string, pair *tls.Certificate, redirect bool) {
	w.edit(func(e *routing.Edit) {
		split := routing.NewSplit([]routing.Share{{Revision: rev(name), Percent: 100}})
		e.SetCertificate(&routing.Certificate{Name: rev(name + "-cert"), TLS: pair})
		e.SetRoute(&routing.Route{Name: rev(name), Hosts: []routing.Host{
			{Host: name + ".example", Split: split, Certificate: rev(name + "-cert"), Redirect: redirect},
		}})
	})
}

// trusting is a client that finds every host at an address and trusts one certificate.
func trusting(t *testing.T, addr string, pair *tls.Certificate, two bool) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: two, DialContext: dialing(addr)}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// dialing finds every host at one address.
func dialing(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

func TestTLS(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(rw, r.Header.Get("X-Forwarded-Proto")+" "+r.Host+" "+string(body))
	}))
	first, second := proof(t, "web.example"), proof(t, "web.example")
	w.secure("web", first, false)
	l := listen(t)
	w.gateway.AddTLS(l)
	ask := func(pair *tls.Certificate, two bool) (string, int, error) {
		resp, err := trusting(t, l.Addr().String(), pair, two).Post("https://web.example/", "text/plain", strings.NewReader("body"))
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), resp.ProtoMajor, err
	}
	for _, two := range []bool{false, true} {
		got, major, err := ask(first, two)
		if got != "https web.example body" || (major == 2) != two || err != nil {
			t.Errorf("%q by HTTP/%d, %v", got, major, err)
		}
	}
	w.secure("web", second, false)
	if _, _, err := ask(second, false); err != nil {
		t.Errorf("with the new certificate: %v", err)
	}
	if _, _, err := ask(first, false); err == nil {
		t.Error("the old certificate is still shown")
	}
	if _, err := trusting(t, l.Addr().String(), first, false).Get("https://other.example/"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a host that nobody has: %v", err)
	}
	// Who shows one name and asks for another gets what anybody from outside gets.
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: "web.example", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.default.svc.cluster.local\r\nConnection: close\r\n\r\n")
	if text, _ := io.ReadAll(c); !bytes.HasPrefix(text, []byte("HTTP/1.1 404 ")) {
		t.Errorf("an inner name: %s", text)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.NotFoundHandler())
	w.secure("web", proof(t, "web.example"), false)
	l := listen(t)
	w.gateway.AddTLS(l)
	if c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: "web.example", InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		c.Close()
		t.Error("TLS 1.1 was taken")
	}
}

func TestRedirect(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SecurePort = 8443 })
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "web") }))
	w.secure("web", proof(t, "web.example"), true)
	for name, client := range map[string]*http.Client{"HTTP/1.1": w.client(), "HTTP/2": w.h2client()} {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for range 2 { // the connection goes on
			resp, err := client.Get("http://web.example/path?a=b")
			if err != nil {
				t.Fatal(name, err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("Location"); resp.StatusCode != 301 || got != "https://web.example:8443/path?a=b" {
				t.Errorf("%s: %d to %q", name, resp.StatusCode, got)
			}
		}
	}
	// Inside, and by TLS, it is answered.
	resp, err := trustingInside(w).Get("http://web.example/")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("from inside: %v, %v", resp, err)
	}
	resp.Body.Close()
	usual := &Gateway{Options: Options{SecurePort: 443}}
	if no := usual.redirect("web.example", "*"); no.location != "https://web.example/" {
		t.Errorf("on the usual port: %q", no.location)
	}
}

func trustingInside(w *world) *http.Client {
	transport := &http.Transport{DialContext: dialing(w.internal)}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}
