// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func options(at time.Time) Options {
	return Options{
		Addresses: []string{"127.0.0.1", "10.43.0.1"}, Names: []string{"kubernetes", "localhost"},
		Server: "https://127.0.0.1:6443", NodeName: "one", NodeAddresses: []string{"10.42.0.1"},
		Now: func() time.Time { return at },
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}

func changed(before, after map[string]string) []string {
	var names []string
	for name, text := range after {
		if before[name] != text {
			names = append(names, name)
		}
	}
	return names
}

func ensure(t *testing.T, dir string, o Options) *Files {
	t.Helper()
	f, err := Ensure(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRestartKeepsEveryByte(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	ensure(t, dir, options(now))
	before := contents(t, dir)
	ensure(t, dir, options(now.Add(24*time.Hour)))
	if names := changed(before, contents(t, dir)); len(names) != 0 {
		t.Errorf("changed: %v", names)
	}
}

func TestLeavesAreRenewedAuthoritiesAreNot(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f := ensure(t, dir, options(now))
	before := contents(t, dir)
	ensure(t, dir, options(now.Add(leafLife*3/4)))
	after := contents(t, dir)
	if before["apiserver.crt"] == after["apiserver.crt"] || before["admin.kubeconfig"] == after["admin.kubeconfig"] {
		t.Error("a leaf in the last third of its life was kept")
	}
	for _, keep := range []string{f.CA.Cert, f.CA.Key, f.FrontProxyCA.Cert, f.Token.Key, f.Token.Cert} {
		name := filepath.Base(keep)
		if before[name] != after[name] {
			t.Errorf("%s was replaced", name)
		}
	}
}

func TestNewAddressMakesNewServingCertificateOnly(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	ensure(t, dir, options(now))
	before := contents(t, dir)
	o := options(now)
	o.Addresses = append(o.Addresses, "192.0.2.7")
	ensure(t, dir, o)
	for _, name := range changed(before, contents(t, dir)) {
		if !strings.HasPrefix(name, "apiserver.") {
			t.Errorf("%s changed", name)
		}
	}
}

func TestHalfWrittenPairIsMadeAgain(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f := ensure(t, dir, options(now))
	if _, err := makeKey(f.Serving.Key); err != nil { // as if power went before the certificate
		t.Fatal(err)
	}
	ensure(t, dir, options(now))
	if _, err := tls.LoadX509KeyPair(f.Serving.Cert, f.Serving.Key); err != nil {
		t.Error(err)
	}
}

func TestBrokenAuthorityIsNotReplaced(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	f := ensure(t, dir, options(now))
	if err := os.WriteFile(f.CA.Cert, []byte("gone"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(dir, options(now)); err == nil || !strings.Contains(err.Error(), "lock out") {
		t.Errorf("err = %v", err)
	}
}

func TestCertificatesVerify(t *testing.T) {
	dir := t.TempDir()
	f := ensure(t, dir, options(time.Now()))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(f.CABundle)
	serving, _, err := read(f.Serving)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"127.0.0.1", "10.43.0.1", "kubernetes", "localhost"} {
		if _, err := serving.Verify(x509.VerifyOptions{DNSName: name, Roots: pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{f.AdminKubeconfig, f.NodeKubeconfig, f.DataPlaneKubeconfig} {
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if config.Host != "https://127.0.0.1:6443" {
			t.Errorf("%s: host %s", path, config.Host)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
}
