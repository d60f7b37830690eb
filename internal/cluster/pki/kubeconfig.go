// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Context is the name that kubeconfigs give cluster, user and context.
const Context = "sonagi"

func ensureKubeconfigs(f *Files, o Options) error {
	admin, err := embedded(f.admin())
	if err != nil {
		return err
	}
	for path, user := range map[string]*clientcmdapi.AuthInfo{
		f.AdminKubeconfig:     admin,
		f.NodeKubeconfig:      named(f.node()),
		f.DataPlaneKubeconfig: named(f.dataPlane()),
	} {
		if err := writeKubeconfig(path, o.Server, f.CABundle, user); err != nil {
			return err
		}
	}
	return nil
}

// embedded carries the certificate inside: the file can be copied anywhere.
func embedded(files Pair) (*clientcmdapi.AuthInfo, error) {
	cert, err := os.ReadFile(files.Cert)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		return nil, fmt.Errorf("client key: %w", err)
	}
	return &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}, nil
}

// named leaves the certificate where it is; clients read it again when it changes.
func named(files Pair) *clientcmdapi.AuthInfo {
	return &clientcmdapi.AuthInfo{ClientCertificate: files.Cert, ClientKey: files.Key}
}

func writeKubeconfig(path, server string, ca []byte, user *clientcmdapi.AuthInfo) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[Context] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[Context] = user
	config.Contexts[Context] = &clientcmdapi.Context{Cluster: Context, AuthInfo: Context}
	config.CurrentContext = Context
	text, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if err := replace(path, text, 0o600); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return nil
}
