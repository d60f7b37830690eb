// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

func TestIssuer(t *testing.T) {
	f, err := Ensure(t.TempDir(), Options{Server: "https://127.0.0.1:1", NodeName: "one"})
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIssuer(f.ServicesCA)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	names := []string{"web.default.example.org"}
	cert, key, err := i.Issue(names, now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(i.Authority())
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: names[0], Roots: roots}); err != nil {
		t.Error(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: names[0], Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a service's certificate proves a client")
	}
	end, renew, ok := i.Until(cert, names)
	if !ok || !renew.After(now) || !end.After(renew.Add(20*24*time.Hour)) {
		t.Errorf("good until %v, renewed at %v, %v", end, renew, ok)
	}
	if _, _, ok := i.Until(cert, []string{"other.example.org"}); ok {
		t.Error("good for another name")
	}
	if _, _, ok := i.Until([]byte("nonsense"), names); ok {
		t.Error("nonsense is good")
	}
	other, err := Ensure(t.TempDir(), Options{Server: "https://127.0.0.1:1", NodeName: "one"})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewIssuer(other.ServicesCA)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := stranger.Until(cert, names); ok {
		t.Error("good for another authority")
	}
}
