// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	kauth "github.com/google/go-containerregistry/pkg/authn/kubernetes"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"k8s.io/client-go/kubernetes"
)

// registry asks registries which digest a tag has.
type registry struct {
	kube      kubernetes.Interface
	aliases   map[string]string
	transport http.RoundTripper
}

func newRegistry(k kubernetes.Interface, aliases map[string]string) *registry {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &registry{kube: k, aliases: aliases, transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if to := aliasOf(aliases, address); to != "" {
				address = to
			}
			return dialer.DialContext(ctx, network, address)
		},
		ForceAttemptHTTP2: true, MaxIdleConns: lookups, MaxIdleConnsPerHost: lookups,
		IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 5 * time.Second,
		ResponseHeaderTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}}
}

// aliasOf finds an alias by the name with its port, or by the name alone.
func aliasOf(aliases map[string]string, address string) string {
	if to, ok := aliases[address]; ok {
		return to
	}
	host, _, _ := net.SplitHostPort(address)
	return aliases[host]
}

// resolve returns the reference with a digest. One that has a digest already stays.
func (r *registry) resolve(ctx context.Context, image Image) (string, error) {
	if _, err := name.NewDigest(image.Reference, name.WeakValidation); err == nil {
		return image.Reference, nil
	}
	tag, err := name.NewTag(image.Reference, name.WeakValidation)
	if err != nil {
		return "", fmt.Errorf("failed to parse image name %q into a tag: %w", image.Reference, err)
	}
	host := tag.RegistryStr()
	keys := authn.Keychain(authn.NewMultiKeychain())
	near := loopback(host) || aliasOf(r.aliases, host) != ""
	if near {
		if tag, err = name.NewTag(image.Reference, name.WeakValidation, name.Insecure); err != nil {
			return "", err
		}
	}
	if !near || len(image.PullSecrets) > 0 {
		keys, err = kauth.New(ctx, r.kube, kauth.Options{
			Namespace: image.Namespace, ServiceAccountName: image.ServiceAccount, ImagePullSecrets: image.PullSecrets,
		})
		if err != nil {
			return "", fmt.Errorf("failed to initialize authentication: %w", err)
		}
	}
	found, err := remote.Head(tag, remote.WithContext(ctx), remote.WithTransport(r.transport), remote.WithAuthFromKeychain(keys), remote.WithUserAgent("sonagi"))
	if err != nil {
		return "", err
	}
	return tag.Repository.String() + "@" + found.Digest.String(), nil
}

// registryOf is the registry that a reference with a tag names, if it is one.
func registryOf(reference string) string {
	tag, err := name.NewTag(reference, name.WeakValidation)
	if err != nil {
		return ""
	}
	return tag.RegistryStr()
}

// loopback reports whether a registry is on this machine, where plain HTTP is safe.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}
