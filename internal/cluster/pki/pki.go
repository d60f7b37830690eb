// SPDX-License-Identifier: Apache-2.0

// Package pki makes and keeps the certificates of the control plane.
//
// One directory holds everything that proves an identity inside the cluster:
// three authorities (the cluster's, which signs servers and clients; the front
// proxy's, which signs only the aggregation layer; and the services', which
// signs what services show to their clients), the leaf certificates they issued, the key that signs service account tokens, and
// the kubeconfigs made from them.
//
// The law of the room:
//
//   - Ensure is idempotent. What is on disk and still good stays, byte for
//     byte, so that a restart invalidates no token, kubeconfig or pinned CA.
//   - A leaf is made again when it nears its end, when its authority changed,
//     or when it no longer says what it should (addresses, subject). An
//     authority and the token key are never replaced silently: if they cannot
//     be read, Ensure fails, because a new one would lock out every client.
//   - A file is replaced whole (write aside, sync, rename), so a power cut
//     leaves the old or the new, never half of one.
//
// Keys are ECDSA P-256 throughout: they are made in microseconds, where RSA
// would cost a first start a second.
package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour

	// A leaf is renewed in the last third of its life: months before anything
	// breaks, and late enough that a normal year of restarts renews it once.
	renewFraction = 3

	// Clocks of virtual machines jump; a certificate from the future is
	// refused by every client.
	clockSkew = time.Hour
)

// Options say whom the certificates are for.
type Options struct {
	// Addresses and Names are what the API server is reached by.
	Addresses []string
	Names     []string

	// Server is the URL that kubeconfigs name, https://127.0.0.1:6443.
	Server string

	// NodeName is the one node; NodeAddresses are where its agent serves, and
	// NodeNames the Services that lead there.
	NodeName      string
	NodeAddresses []string
	NodeNames     []string

	// Kubeconfig is where the administrator's kubeconfig goes.
	// Empty means admin.kubeconfig in the directory.
	Kubeconfig string

	// Now is read once per Ensure; nil means time.Now.
	Now func() time.Time
}

// A Pair names a certificate and its private key.
type Pair struct {
	Cert string
	Key  string
}

// Files names everything Ensure made.
type Files struct {
	Dir string

	CA            Pair // signs API server, node and clients
	CABundle      []byte
	Serving       Pair // the API server's own
	FrontProxyCA  Pair // signs the aggregation layer's client certificate
	ServicesCA    Pair // signs the certificates of services' hosts; clients of services trust it
	FrontProxy    Pair // the aggregation layer's client certificate
	KubeletClient Pair // the API server towards the node agent
	KubeletServer Pair // the node agent's HTTPS API
	Token         Pair // signs service account tokens; Cert holds the public key

	AdminKubeconfig     string // embeds its certificate, to be carried elsewhere
	NodeKubeconfig      string // system:node:NAME; names its certificate's files, so that a renewal is picked up
	DataPlaneKubeconfig string // sonagi:data-plane; likewise
}

// Users and groups that the certificates prove.
const (
	DataPlaneUser = "sonagi:data-plane"
	adminUser     = "sonagi:admin"
	mastersGroup  = "system:masters"
	nodesGroup    = "system:nodes"
	nodePrefix    = "system:node:"

	// FrontProxyName is the only name the API server believes request headers from.
	FrontProxyName = "front-proxy-client"
)

// Ensure makes what is missing or close to expiry in dir, and names it all.
func Ensure(dir string, o Options) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate directory: %w", err)
	}
	now := time.Now()
	if o.Now != nil {
		now = o.Now()
	}
	f := layout(dir, o)
	ca, err := ensureAuthority(f.CA, "sonagi", now)
	if err != nil {
		return nil, err
	}
	front, err := ensureAuthority(f.FrontProxyCA, "sonagi-front-proxy", now)
	if err != nil {
		return nil, err
	}
	if _, err := ensureAuthority(f.ServicesCA, "sonagi services", now); err != nil {
		return nil, err
	}
	if err := ensureTokenKey(f.Token); err != nil {
		return nil, err
	}
	for _, l := range leaves(f, o, ca, front) {
		if err := l.ensure(now); err != nil {
			return nil, err
		}
	}
	if f.CABundle, err = os.ReadFile(f.CA.Cert); err != nil {
		return nil, fmt.Errorf("cluster authority: %w", err)
	}
	return f, ensureKubeconfigs(f, o)
}

func layout(dir string, o Options) *Files {
	pair := func(name string) Pair {
		return Pair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	}
	f := &Files{
		Dir:                 dir,
		CA:                  pair("ca"),
		Serving:             pair("apiserver"),
		FrontProxyCA:        pair("front-proxy-ca"),
		ServicesCA:          pair("services-ca"),
		FrontProxy:          pair("front-proxy-client"),
		KubeletClient:       pair("apiserver-kubelet-client"),
		KubeletServer:       pair("kubelet"),
		Token:               Pair{Cert: filepath.Join(dir, "service-account.pub"), Key: filepath.Join(dir, "service-account.key")},
		AdminKubeconfig:     o.Kubeconfig,
		NodeKubeconfig:      filepath.Join(dir, "node.kubeconfig"),
		DataPlaneKubeconfig: filepath.Join(dir, "data-plane.kubeconfig"),
	}
	if f.AdminKubeconfig == "" {
		f.AdminKubeconfig = filepath.Join(dir, "admin.kubeconfig")
	}
	return f
}

func (f *Files) admin() Pair     { return f.client("admin") }
func (f *Files) node() Pair      { return f.client("node") }
func (f *Files) dataPlane() Pair { return f.client("data-plane") }

func (f *Files) client(name string) Pair {
	return Pair{Cert: filepath.Join(f.Dir, name+".crt"), Key: filepath.Join(f.Dir, name+".key")}
}

func leaves(f *Files, o Options, ca, front *authority) []leaf {
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	name := func(cn string, groups ...string) pkix.Name {
		return pkix.Name{CommonName: cn, Organization: groups}
	}
	return []leaf{
		{files: f.Serving, by: ca, subject: name("kube-apiserver"), usage: server, names: o.Names, addresses: parse(o.Addresses)},
		{files: f.KubeletServer, by: ca, subject: name(nodePrefix+o.NodeName, nodesGroup), usage: server, names: append([]string{o.NodeName}, o.NodeNames...), addresses: parse(o.NodeAddresses)},
		{files: f.KubeletClient, by: ca, subject: name("kube-apiserver-kubelet-client", mastersGroup), usage: client},
		{files: f.FrontProxy, by: front, subject: name(FrontProxyName), usage: client},
		{files: f.admin(), by: ca, subject: name(adminUser, mastersGroup), usage: client},
		{files: f.node(), by: ca, subject: name(nodePrefix+o.NodeName, nodesGroup), usage: client},
		{files: f.dataPlane(), by: ca, subject: name(DataPlaneUser), usage: client},
	}
}

func parse(addresses []string) []net.IP {
	var ips []net.IP
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil {
			ips = append(ips, ip)
		}
	}
	return ips
}
