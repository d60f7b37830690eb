// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// servicesLife is for how long a service's certificate is good. It is renewed
// in the last third of that.
const servicesLife = 90 * 24 * time.Hour

// An Issuer signs the certificates of services' hosts.
type Issuer struct {
	ca  *authority
	pem []byte
}

// Authority is the certificate in PEM that clients of services are to trust.
func (i *Issuer) Authority() []byte { return i.pem }

// NewIssuer reads the authority that Ensure has made.
func NewIssuer(files Pair) (*Issuer, error) {
	cert, key, err := read(files)
	if err != nil {
		return nil, fmt.Errorf("authority of services: %w", err)
	}
	return &Issuer{ca: &authority{cert, key}, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})}, nil
}

// Issue makes a key and a certificate of it for these host names, in PEM.
func (i *Issuer) Issue(names []string, now time.Time) (cert, key []byte, err error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("certificate: %w", err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     earlier(now.Add(servicesLife), i.ca.cert.NotAfter),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     names,
	}
	// A common name is short or left out; nobody has to read it.
	if len(names) > 0 && len(names[0]) <= 64 {
		template.Subject = pkix.Name{CommonName: names[0]}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.ca.cert, private.Public(), i.ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %v: %w", names, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %v: %w", names, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), nil
}

// Until says when a certificate in PEM ends and when it is to be renewed. It
// reports false for one that is not this issuer's, or not for these names.
func (i *Issuer) Until(cert []byte, names []string) (end, renew time.Time, ok bool) {
	block, _ := pem.Decode(cert)
	if block == nil {
		return end, renew, false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil || c.CheckSignatureFrom(i.ca.cert) != nil || !slices.Equal(c.DNSNames, names) {
		return end, renew, false
	}
	return c.NotAfter, c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / renewFraction), true
}
