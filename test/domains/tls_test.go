// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

// httpsClient trusts an authority, and finds every host at the gateway.
func httpsClient(t *testing.T, roots *x509.CertPool) *http.Client {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", p.SecurePort))
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// securely asks a URL and returns the answer, which must be 200, and the certificate.
func securely(client *http.Client, url string) (body string, resp *http.Response, err error) {
	resp, err = client.Get(url)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", url, resp.Status, text)
	}
	return string(text), resp, err
}

// selfSigned is a certificate for a host that signs itself, in two files.
func selfSigned(t *testing.T, host string) (cert, key string, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	roots = x509.NewCertPool()
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: secret}} {
		var text bytes.Buffer
		if err := pem.Encode(&text, block); err != nil {
			t.Fatal(err)
		}
		if name == "tls.crt" {
			roots.AppendCertsFromPEM(text.Bytes())
		}
		if err := os.WriteFile(filepath.Join(dir, name), text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), roots
}

// replaceSecret puts another certificate into a Secret, as its owner does.
func (s space) replaceSecret(name, cert, key string) {
	s.t.Helper()
	s.Make(s.K("create", "secret", "tls", name, "--cert", cert, "--key", key, "--dry-run=client", "-o", "yaml"))
}

// plainly asks for a host by plain HTTP and does not follow.
func plainly(t *testing.T, host, path string) (status int, location string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Location"), nil
}

func TestOwnCertificate(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "owncert")
	s.web()
	const domain = "own.example.org"
	claim(t, domain, s.Name)
	s.Make(mapping(domain, "serving.knative.dev/v1", "Service", "web", "  tls: {secretName: mine}"))
	s.condition("dm/"+domain, "CertificateProvisioned", "True", "CertificateExternallyProvided", "TLS certificate was provided externally")
	s.condition("dm/"+domain, "IngressReady", "Unknown", "IngressNotConfigured", "Ingress has not yet been reconciled.")
	cert, key, roots := selfSigned(t, domain)
	s.K("create", "secret", "tls", "mine", "--cert", cert, "--key", key)
	s.ready("dm/" + domain)
	url := fmt.Sprintf("https://%s:%d", domain, p.SecurePort)
	if got := s.Field("dm/"+domain, ".status.url"); got != url {
		t.Errorf("URL %q, want %q", got, url)
	}
	body, resp, err := securely(httpsClient(t, roots), url)
	if err != nil || body != s.Name {
		t.Fatalf("%q, %v", body, err)
	}
	if resp.ProtoMajor != 2 {
		t.Errorf("protocol %s, want HTTP/2", resp.Proto)
	}
	body, _, err = securely(httpsClient(t, roots), url+"/about")
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, body, `"X-Forwarded-Proto":["https"]`, `"host":"`+domain)
	// HTTP/1.1 as well, and plain HTTP as long as nobody has forbidden it.
	one := httpsClient(t, roots)
	one.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	one.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	if body, resp, err := securely(one, url); err != nil || body != s.Name || resp.ProtoMajor != 1 {
		t.Errorf("by HTTP/1.1: %q, %v", body, err)
	}
	answers(t, domain, 200, s.Name)
	// A name without certificate is not known.
	if _, _, err := securely(httpsClient(t, roots), strings.Replace(url, "own", "none", 1)); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that nobody has: %v", err)
	}
	// A new certificate is served without a restart of anything, and without a lost request.
	cert, key, next := selfSigned(t, domain)
	s.K("delete", "secret", "mine")
	s.K("create", "secret", "tls", "mine", "--cert", cert, "--key", key)
	platform.Eventually(t, 10*time.Second, func() error {
		_, _, err := securely(httpsClient(t, next), url)
		return err
	})
	if _, _, err := securely(httpsClient(t, roots), url); err == nil {
		t.Error("the old certificate is still served")
	}
	// Nobody who keeps asking loses a request meanwhile.
	stop, lost := make(chan struct{}), make(chan error, 1)
	go func() {
		anyone := httpsClient(t, nil)
		anyone.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
		anyone.Transport.(*http.Transport).DisableKeepAlives = true // a handshake each
		for {
			select {
			case <-stop:
				lost <- nil
				return
			default:
			}
			if _, _, err := securely(anyone, url); err != nil {
				lost <- err
				return
			}
		}
	}()
	for range 5 {
		cert, key, next = selfSigned(t, domain)
		s.replaceSecret("mine", cert, key)
		platform.Eventually(t, 10*time.Second, func() error {
			_, _, err := securely(httpsClient(t, next), url)
			return err
		})
	}
	close(stop)
	if err := <-lost; err != nil {
		t.Errorf("a request was lost: %v", err)
	}
	// Sent to HTTPS, if the mapping says so.
	s.K("annotate", "dm", domain, "networking.knative.dev/http-protocol=Redirected")
	platform.Eventually(t, 10*time.Second, func() error {
		status, location, err := plainly(t, domain, "/x?y=z")
		if err == nil && (status != 301 || location != url+"/x?y=z") {
			err = fmt.Errorf("%d to %q", status, location)
		}
		return err
	})
}

// services is what clients of services have to trust, where the documentation says that it is.
func services(t *testing.T) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.DataDir, "services-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatal("services-ca.crt holds no certificate")
	}
	return roots
}

// expiring is a certificate of the platform's authority that has ten days left.
func expiring(t *testing.T, host string) []byte {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(p.DataDir, "pki", "services-ca.crt"), filepath.Join(p.DataDir, "pki", "services-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: []string{host}, NotBefore: time.Now().Add(-80 * 24 * time.Hour), NotAfter: time.Now().Add(10 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestExternalDomainTLS(t *testing.T) {
	s := newSpace(t, "auto")
	s.serve("early", "early", "", "", "")
	set(t, "config-network", map[string]string{"external-domain-tls": "Enabled", "autocreate-cluster-domain-claims": "true"})
	client := httpsClient(t, services(t))
	secure := func(host string) string { return fmt.Sprintf("https://%s:%d", host, p.SecurePort) }
	asked := func(host, want string) {
		t.Helper()
		platform.Eventually(t, 20*time.Second, func() error {
			body, _, err := securely(client, secure(host))
			if err == nil && body != want {
				err = fmt.Errorf("%s answers %q, want %q", host, body, want)
			}
			return err
		})
	}
	// What was there before gets it too.
	s.Becomes("ksvc/early", ".status.url", secure(p.Host("early", s.Name)))
	asked(p.Host("early", s.Name), "early")
	s.serve("web", "one", "", "", "")
	s.serve("web", "two", "", "", "{latestRevision: true, percent: 100}, {revisionName: web-00001, percent: 0, tag: old}")
	s.condition("route/web", "CertificateProvisioned", "True", "", "")
	asked(p.Host("web", s.Name), "two")
	asked(p.Host("old-web", s.Name), "one")
	if got, want := s.Field("ksvc/web", ".status.url")+" "+s.Field("ksvc/web", ".status.traffic[1].url"), secure(p.Host("web", s.Name))+" "+secure(p.Host("old-web", s.Name)); got != want {
		t.Errorf("URLs %q, want %q", got, want)
	}
	if got := s.Field("ksvc/web", ".status.address.url"); got != "http://web.auto.svc.cluster.local" {
		t.Errorf("address %q", got)
	}
	uid := s.Field("route/web", ".metadata.uid")
	wantAll(t, s.K("get", "kcert"), "NAME", "READY", "REASON", "route-"+uid+" ", "True")
	if got := s.Field("secret/route-"+uid, ".type"); got != "kubernetes.io/tls" {
		t.Errorf("type of the secret %q", got)
	}
	// The certificate of a tag goes with it.
	certificates := func(want int) {
		t.Helper()
		platform.Eventually(t, 20*time.Second, func() error {
			out, err := s.Try("get", "kcert,secret", "-l", "serving.knative.dev/route=web", "-o", "name")
			if n := strings.Count(out, "certificate."); err == nil && n != want {
				err = fmt.Errorf("%d certificates of web, want %d: %s", n, want, out)
			}
			return err
		})
	}
	certificates(2)
	s.serve("web", "two", "", "", "")
	certificates(1)
	// A secret that is lost comes back.
	s.K("delete", "secret", "route-"+uid)
	s.K("wait", "--for=create", "secret/route-"+uid, "--timeout=20s")
	asked(p.Host("web", s.Name), "two")
	// One that is near its end is renewed.
	old := expiring(t, p.Host("web", s.Name))
	s.K("patch", "secret", "route-"+uid, "--type=merge", "-p", fmt.Sprintf(`{"data":{"tls.crt":%q}}`, base64.StdEncoding.EncodeToString(old)))
	platform.Eventually(t, 20*time.Second, func() error {
		_, resp, err := securely(client, secure(p.Host("web", s.Name)))
		if err == nil && time.Until(resp.TLS.PeerCertificates[0].NotAfter) < 80*24*time.Hour {
			err = fmt.Errorf("the certificate ends at %v", resp.TLS.PeerCertificates[0].NotAfter)
		}
		client.CloseIdleConnections()
		return err
	})
	if got := s.Field("secret/route-"+uid, `.data.tls\.crt`); got == base64.StdEncoding.EncodeToString(old) {
		t.Error("the secret still holds the old certificate")
	}
	// Plain HTTP, and its redirection, for all and for one.
	answers(t, p.Host("web", s.Name), 200, "two")
	set(t, "config-network", map[string]string{"http-protocol": "Redirected"})
	redirected := func(host string, want int) {
		t.Helper()
		platform.Eventually(t, 20*time.Second, func() error {
			status, location, err := plainly(t, host, "/path?q=1")
			if err == nil && (status != want || want == 301 && location != secure(host)+"/path?q=1") {
				err = fmt.Errorf("%s: %d to %q", host, status, location)
			}
			return err
		})
	}
	redirected(p.Host("web", s.Name), 301)
	redirected(p.Host("early", s.Name), 301)
	s.K("annotate", "ksvc", "early", "networking.knative.dev/http-protocol=Enabled")
	redirected(p.Host("early", s.Name), 200)
	// From pods, under the names inside, nobody is redirected.
	if body, _, err := securely(client, secure(p.Host("web", s.Name))+"/fetch?url=http://early."+s.Name); err != nil || body != "early" {
		t.Errorf("from a pod: %q, %v", body, err)
	}
	t.Run("private", func(t *testing.T) {
		s.serve("private", "private", "networking.knative.dev/visibility: cluster-local", "", "")
		s.condition("route/private", "CertificateProvisioned", "True", "TLSNotEnabled", "TLS is not enabled for cluster-local")
		if got := s.Field("ksvc/private", ".status.url"); got != "http://private.auto.svc.cluster.local" {
			t.Errorf("URL %q", got)
		}
	})
	t.Run("disabled for one", func(t *testing.T) {
		s.serve("plain", "plain", "", `networking.knative.dev/disable-external-domain-tls: "true"`, "")
		s.condition("route/plain", "CertificateProvisioned", "True", "TLSNotEnabled", "external-domain-tls is not enabled")
		redirected(p.Host("plain", s.Name), 200)
	})
	t.Run("domain", func(t *testing.T) {
		const domain = "auto.example.org"
		s.Make(toService(domain))
		s.ready("dm/" + domain)
		s.condition("dm/"+domain, "CertificateProvisioned", "True", "", "")
		s.Becomes("dm/"+domain, ".status.url", secure(domain))
		asked(domain, "two")
		redirected(domain, 301)
		s.K("delete", "dm", domain)
	})
	t.Run("off again", func(t *testing.T) {
		set(t, "config-network", map[string]string{"external-domain-tls": "Disabled"})
		s.Becomes("ksvc/web", ".status.url", p.ServiceURL("web", s.Name))
		redirected(p.Host("web", s.Name), 200)
	})
}

func TestAuthorityIsShown(t *testing.T) {
	t.Parallel()
	out, err := p.Sonagi(t.Context(), "status")
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, out, fmt.Sprintf("HTTPS     port %d (authority %s)", p.SecurePort, filepath.Join(p.DataDir, "services-ca.crt")))
	wantAll(t, p.Output(), filepath.Join(p.DataDir, "services-ca.crt"))
}
