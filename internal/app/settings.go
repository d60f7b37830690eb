// SPDX-License-Identifier: Apache-2.0

// Package app wires rooms into roles and runs them.
//
// Law: one file a role; everything is built by hand, in the order in which it
// starts, with the reason for the order. Nothing here decides anything that a
// room could decide.
package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/node/network"
)

// Settings are all that can be chosen when the platform starts. They are kept
// in the data directory, so that a later start without flags finds the same
// addresses again, and are handed to the child processes as that file.
type Settings struct {
	DataDir            string       `json:"dataDir"`
	NodeName           string       `json:"nodeName"`
	Bridge             string       `json:"bridge"`
	PodCIDR            netip.Prefix `json:"podCIDR"`
	ServiceCIDR        netip.Prefix `json:"serviceCIDR"`
	ClusterDomain      string       `json:"clusterDomain"`
	Domain             string       `json:"domain"`      // default domain of routes
	GatewayPort        uint16       `json:"gatewayPort"` // on every address of the host
	SecurePort         uint16       `json:"securePort"`  // HTTPS, likewise
	InternalPort       uint16       `json:"internalPort"`
	APIPort            uint16       `json:"apiPort"`
	KubeletPort        uint16       `json:"kubeletPort"`
	RegistryPort       uint16       `json:"registryPort"`
	InsecureRegistries []string     `json:"insecureRegistries,omitempty"`
	LogLevel           string       `json:"logLevel"`
}

// Defaults are the settings of a first start without flags.
func Defaults() Settings {
	return Settings{
		DataDir:       "/var/lib/sonagi",
		NodeName:      hostName(),
		Bridge:        "sonagi0",
		PodCIDR:       netip.MustParsePrefix("10.42.0.0/16"),
		ServiceCIDR:   netip.MustParsePrefix("10.43.0.0/16"),
		ClusterDomain: "cluster.local",
		Domain:        "sonagi.localhost",
		GatewayPort:   80,
		SecurePort:    443,
		InternalPort:  8081,
		APIPort:       6443,
		KubeletPort:   10250,
		RegistryPort:  5000,
		LogLevel:      "info",
	}
}

// hostName is the machine's name as a node name may be: a DNS-1123 subdomain.
func hostName() string {
	name, err := os.Hostname()
	name = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(name)), "-.")
	if err != nil || name == "" {
		return "sonagi"
	}
	return name
}

// Load reads the settings of an earlier start from dataDir; if there was none,
// it returns the defaults for that directory.
func Load(dataDir string) (Settings, error) {
	s := Defaults()
	s.DataDir = dataDir
	text, err := os.ReadFile(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("the data directory %s cannot be used (%w). Choose another with --data-dir", dataDir, err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("settings in %s: %w; remove the file to start with defaults", s.file(), err)
	}
	s.DataDir = dataDir
	return s, nil
}

// Save keeps the settings for the children and for the next start.
func (s Settings) Save() error {
	if err := os.MkdirAll(s.DataDir, 0o755); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return writeFile(s.file(), append(text, '\n'), 0o644)
}

// writeFile replaces a file whole: a reader sees the old text or the new.
func writeFile(path string, text []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, text, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func (s Settings) file() string { return s.Path("settings.json") }

// Path is a path below the data directory.
func (s Settings) Path(elem ...string) string {
	return filepath.Join(append([]string{s.DataDir}, elem...)...)
}

// Kubeconfig is the administrator's.
func (s Settings) Kubeconfig() string { return s.Path("kubeconfig") }

// BridgeIP is this machine's address towards its pods: the first of the pod range.
func (s Settings) BridgeIP() netip.Addr { return s.PodCIDR.Masked().Addr().Next() }

// DNSIP is the cluster DNS service's address: the tenth of the service range, as everywhere.
func (s Settings) DNSIP() netip.Addr {
	a := s.ServiceCIDR.Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	return a
}

// certificates says for whom the control plane's certificates are.
func (s Settings) certificates() pki.Options {
	bridge := s.BridgeIP().String()
	return pki.Options{
		Addresses: []string{"127.0.0.1", bridge, s.ServiceCIDR.Masked().Addr().Next().String()},
		Names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + s.ClusterDomain},
		Server:        fmt.Sprintf("https://127.0.0.1:%d", s.APIPort),
		NodeName:      s.NodeName,
		NodeAddresses: []string{"127.0.0.1", bridge},
		NodeNames:     []string{"metrics-server.kube-system.svc"}, // the agent serves metrics.k8s.io
		Kubeconfig:    s.Kubeconfig(),
	}
}

// network says where the pods' network is. Names other than the default
// bridge's are derived from it, so that two platforms can share a machine.
func (s Settings) network(log *slog.Logger) network.Options {
	o := network.Options{
		Dir: s.Path("run", "sandboxes"), Bridge: s.Bridge, Table: s.Bridge, LinkPrefix: "sgi",
		PodCIDR: s.PodCIDR, ServiceCIDR: s.ServiceCIDR, Log: log,
	}
	if s.Bridge != Defaults().Bridge {
		h := fnv.New32a()
		_, _ = h.Write([]byte(s.Bridge))
		o.LinkPrefix = fmt.Sprintf("s%05x", h.Sum32()&0xfffff)
	}
	return o
}

// URLSuffix is what follows the host in a route's URL: empty, or the gateway's port.
func (s Settings) URLSuffix() string {
	if s.GatewayPort == 80 {
		return ""
	}
	return fmt.Sprintf(":%d", s.GatewayPort)
}

// SecureSuffix is the same for HTTPS.
func (s Settings) SecureSuffix() string {
	if s.SecurePort == 443 {
		return ""
	}
	return fmt.Sprintf(":%d", s.SecurePort)
}

// ServicesCA is the authority that clients of services trust for HTTPS.
func (s Settings) ServicesCA() string { return s.Path("services-ca.crt") }

// RegistryHost is how images in the built-in registry are named, on the host and in manifests.
func (s Settings) RegistryHost() string { return fmt.Sprintf("localhost:%d", s.RegistryPort) }
