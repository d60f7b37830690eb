// SPDX-License-Identifier: Apache-2.0

// Command kubeapiserver is upstream's API server with etcd in one process, and nothing else: a peer.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	dir := flag.String("dir", "", "where its data is kept")
	etcdPort, peerPort, port := flag.Int("etcd-port", 2379, "of etcd"), flag.Int("peer-port", 2380, "of etcd, for others"), flag.Int("port", 6443, "of the API")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := serve(ctx, *dir, *etcdPort, *peerPort, *port); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, dir string, etcdPort, peerPort, port int) error {
	key := filepath.Join(dir, "sa.key")
	if err := writeKey(key); err != nil {
		return err
	}
	cfg := embed.NewConfig()
	client, peer := local(etcdPort), local(peerPort)
	cfg.Dir, cfg.LogLevel = filepath.Join(dir, "etcd"), "error"
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	store, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer store.Close()
	select {
	case <-store.Server.ReadyNotify():
	case <-ctx.Done():
		return nil
	}
	cmd := app.NewAPIServerCommand()
	cmd.SetArgs([]string{
		"--etcd-servers=" + client.String(), fmt.Sprint("--secure-port=", port), "--bind-address=127.0.0.1", "--cert-dir=" + filepath.Join(dir, "certs"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key, "--service-account-signing-key-file=" + key,
		"--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
	})
	return cmd.ExecuteContext(ctx)
}

func local(port int) url.URL {
	return url.URL{Scheme: "http", Host: fmt.Sprint("127.0.0.1:", port)}
}

func writeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}
