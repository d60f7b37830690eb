// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"slices"
	"time"
)

// An authority is a certificate with the key to sign others.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// A leaf is what a certificate should say, and where it is kept.
type leaf struct {
	files     Pair
	by        *authority
	subject   pkix.Name
	usage     []x509.ExtKeyUsage
	names     []string
	addresses []net.IP
}

func ensureAuthority(files Pair, name string, now time.Time) (*authority, error) {
	cert, key, err := read(files)
	if err == nil {
		if now.After(cert.NotAfter) {
			return nil, fmt.Errorf("the authority %s expired on %s: remove the certificate directory to make a new one; every kubeconfig has to be handed out again",
				files.Cert, cert.NotAfter.Format(time.DateOnly))
		}
		return &authority{cert, key}, nil
	}
	if !absent(files) {
		return nil, fmt.Errorf("authority %s is unreadable, and a new one would lock out every client: %w", files.Cert, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	cert, key, err = sign(files, template, nil)
	if err != nil {
		return nil, fmt.Errorf("make authority %s: %w", name, err)
	}
	return &authority{cert, key}, nil
}

func (l leaf) ensure(now time.Time) error {
	if cert, _, err := read(l.files); err == nil && l.keeps(cert, now) {
		return nil
	}
	template := &x509.Certificate{
		Subject:     l.subject,
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    earlier(now.Add(leafLife), l.by.cert.NotAfter),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: l.usage,
		DNSNames:    l.names,
		IPAddresses: l.addresses,
	}
	if _, _, err := sign(l.files, template, l.by); err != nil {
		return fmt.Errorf("make certificate of %s: %w", l.subject.CommonName, err)
	}
	return nil
}

// keeps reports whether cert still says all that the leaf should.
func (l leaf) keeps(cert *x509.Certificate, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return now.Before(cert.NotAfter.Add(-life/renewFraction)) &&
		now.After(cert.NotBefore) &&
		cert.CheckSignatureFrom(l.by.cert) == nil &&
		cert.Subject.CommonName == l.subject.CommonName &&
		slices.Equal(cert.Subject.Organization, l.subject.Organization) &&
		slices.Equal(cert.DNSNames, l.names) &&
		slices.EqualFunc(cert.IPAddresses, l.addresses, net.IP.Equal)
}

// ensureTokenKey keeps the key that signs service account tokens. Its public
// half is derived, so it is written again whenever it differs.
func ensureTokenKey(files Pair) error {
	key, err := readKey(files.Key)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(files.Key)
	}
	if err != nil {
		return fmt.Errorf("service account key %s: %w", files.Key, err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("service account key %s: %w", files.Key, err)
	}
	return replace(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644)
}

// sign writes a new key and its certificate; a nil authority signs itself.
func sign(files Pair, template *x509.Certificate, by *authority) (*x509.Certificate, crypto.Signer, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	key, err := makeKey(files.Key)
	if err != nil {
		return nil, nil, err
	}
	if by == nil {
		by = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, nil, err
	}
	if err := replace(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func makeKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, replace(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// read returns a certificate and its key, which must belong together: a crash
// between the two writes leaves a new key beside an old certificate.
func read(files Pair) (*x509.Certificate, crypto.Signer, error) {
	text, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, nil, fmt.Errorf("%s holds no certificate", files.Cert)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", files.Cert, err)
	}
	key, err := readKey(files.Key)
	if err != nil {
		return nil, nil, err
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, nil, fmt.Errorf("%s does not belong to %s", files.Cert, files.Key)
	}
	return cert, key, nil
}

func readKey(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// absent reports whether there is no certificate yet. A lone key is the trace
// of a first start that was cut short: nobody has seen its certificate.
func absent(files Pair) bool {
	_, err := os.Stat(files.Cert)
	return errors.Is(err, fs.ErrNotExist)
}

// replace writes a file whole, or leaves the one that is there.
func replace(path string, data []byte, mode fs.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	aside := path + ".new"
	if err := writeSynced(aside, data, mode); err != nil {
		return err
	}
	if err := os.Rename(aside, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

func writeSynced(path string, data []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
