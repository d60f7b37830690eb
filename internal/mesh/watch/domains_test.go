// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

func newDomain(name, target, backend string) *servingv1beta1.DomainMapping {
	m := &servingv1beta1.DomainMapping{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	m.Status.URL = apis.HTTP(name)
	m.Status.Annotations = map[string]string{routing.TargetAnnotation: target}
	if backend != "" {
		m.Status.Annotations[routing.BackendAnnotation] = backend
	}
	return m
}

// newSecret holds a certificate that signs itself.
func newSecret(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"own.example"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
		},
	}
}

// table waits for one that ok accepts.
func table(t *testing.T, w *Watch, what string, ok func(*routing.Table) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := w.Live.Wait(ctx, func(t *routing.Table) bool { return t != nil && ok(t) }); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestDomains(t *testing.T) {
	a := newAPI(t, newRoute("web", "a"), newRevision("a"), newDomain("own.example", "web.ns.svc.cluster.local", ""))
	w := start(t, a)
	until(t, w, "own.example", "a")
	m := newDomain("own.example", "web.ns.svc.cluster.local", "")
	m.Status.Conditions = duckv1.Conditions{{Type: "DomainClaimed", Status: corev1.ConditionFalse}}
	if err := a.Update(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	until(t, w, "own.example", "")
	until(t, w, "web.example", "a")
	if err := a.Update(t.Context(), newDomain("own.example", "web.ns.svc.cluster.local", "")); err != nil {
		t.Fatal(err)
	}
	until(t, w, "own.example", "a")
	// What happens while the API is away is seen afterwards, and takes nothing else with it.
	a.leave()
	if err := a.Delete(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	a.comeBack()
	until(t, w, "own.example", "")
	until(t, w, "web.example", "a")
}

func TestPlainServicesBehindDomains(t *testing.T) {
	a := newAPI(t, newDomain("own.example", "plain.ns.svc.cluster.local", "10.43.0.7:80"))
	news, gone := make(chan routing.Endpoint, 10), make(chan routing.Name, 10)
	w := start(t, a, func(o *Options) {
		o.OnService = func(e routing.Endpoint) { news <- e }
		o.OnGone = func(n routing.Name) { gone <- n }
	})
	name := routing.MappingOf(routing.Name{Namespace: "ns", Name: "own.example"})
	until(t, w, "own.example", name.Name)
	if e := <-news; !e.Ready || e.IP.String() != "10.43.0.7" || e.Revision != name {
		t.Errorf("%+v", e)
	}
	// Another address is another endpoint; the one before gets no new request.
	if err := a.Update(t.Context(), newDomain("own.example", "plain.ns.svc.cluster.local", "10.43.0.8:80")); err != nil {
		t.Fatal(err)
	}
	if e := <-news; !e.Gone || e.IP.String() != "10.43.0.7" {
		t.Errorf("%+v", e)
	}
	if e := <-news; !e.Ready || e.IP.String() != "10.43.0.8" {
		t.Errorf("%+v", e)
	}
	if err := a.Delete(t.Context(), newDomain("own.example", "", "")); err != nil {
		t.Fatal(err)
	}
	if e := <-news; !e.Gone || e.IP.String() != "10.43.0.8" {
		t.Errorf("%+v", e)
	}
	if n := <-gone; n != name {
		t.Errorf("%v is gone", n)
	}
	until(t, w, "own.example", "")
}

func TestCertificates(t *testing.T) {
	m := newDomain("own.example", "web.ns.svc.cluster.local", "")
	m.Spec.TLS = &servingv1beta1.SecretTLS{SecretName: "mine"}
	a := newAPI(t, newRoute("web", "a"), newRevision("a"), m)
	w := start(t, a)
	until(t, w, "own.example", "a")
	server := httptest.NewServer(w.Handler())
	defer server.Close()
	served := make(chan string, 1)
	go func() {
		resp, err := http.Get(server.URL + Path + "?kind=DomainMapping&namespace=ns&name=own.example&resourceVersion=" + m.ResourceVersion)
		if err != nil {
			served <- err.Error()
			return
		}
		resp.Body.Close()
		served <- resp.Status
	}()
	if w.Live.Load().Certificate("own.example") != nil {
		t.Error("a certificate without a Secret")
	}
	first := newSecret(t, "mine")
	if err := a.Create(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	table(t, w, "no certificate", func(t *routing.Table) bool { return t.Certificate("own.example") != nil })
	// Only with its certificate is the mapping served.
	if got := <-served; got != "200 OK" {
		t.Error(got)
	}
	was := w.Live.Load().Certificate("own.example")
	if err := a.Update(t.Context(), newSecret(t, "mine")); err != nil {
		t.Fatal(err)
	}
	table(t, w, "not the new one", func(t *routing.Table) bool { c := t.Certificate("own.example"); return c != nil && c != was })
	broken := newSecret(t, "mine")
	broken.Data[corev1.TLSPrivateKeyKey] = first.Data[corev1.TLSPrivateKeyKey]
	if err := a.Update(t.Context(), broken); err != nil {
		t.Fatal(err)
	}
	table(t, w, "a key of another certificate", func(t *routing.Table) bool { return t.Certificate("own.example") == nil })
	until(t, w, "own.example", "a")
}
