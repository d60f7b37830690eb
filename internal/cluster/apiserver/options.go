// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/admission"
	apiserveroptions "k8s.io/apiserver/pkg/server/options"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controlplane"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"

	"github.com/sonagi/sonagi/internal/cluster/pki"
)

// complete translates our options into upstream's.
func (s *Server) complete(ctx context.Context, listener net.Listener) (kubeoptions.CompletedOptions, error) {
	none := kubeoptions.CompletedOptions{}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(gates); err != nil {
		return none, fmt.Errorf("feature gates: %w", err)
	}
	o := kubeoptions.NewServerRunOptions()
	if err := s.serving(o, listener); err != nil {
		return none, err
	}
	s.identity(o)
	s.store(o)
	s.plugins(o.Admission.GenericAdmission)
	o.APIEnablement.RuntimeConfig = served
	o.Features.EnablePriorityAndFairness = false
	o.Features.EnableProfiling = false
	o.AllowPrivileged = true
	o.ServiceClusterIPRanges = s.options.ServiceCIDR
	o.EndpointReconcilerType = string(reconcilers.MasterCountReconcilerType)

	completed, err := o.Complete(ctx)
	if err != nil {
		return none, err
	}
	return completed, errors.Join(completed.Validate()...)
}

func (s *Server) serving(o *kubeoptions.ServerRunOptions, listener net.Listener) error {
	advertise := net.ParseIP(s.options.Advertise)
	if advertise == nil {
		return fmt.Errorf("%q is not an IP address to advertise the API server by", s.options.Advertise)
	}
	address := listener.Addr().(*net.TCPAddr)
	o.GenericServerRunOptions.AdvertiseAddress = advertise
	o.GenericServerRunOptions.ExternalHost = s.options.Advertise
	o.SecureServing.Listener = listener
	o.SecureServing.BindPort = address.Port
	o.SecureServing.BindAddress = address.IP
	o.SecureServing.ServerCert.CertKey = certKey(s.options.PKI.Serving)

	// Watches end at once when the server stops: their clients come back by
	// themselves, and nothing else would end them.
	o.GenericServerRunOptions.ShutdownWatchTerminationGracePeriod = 0

	o.KubeletConfig.TLSClientConfig.CertFile = s.options.PKI.KubeletClient.Cert
	o.KubeletConfig.TLSClientConfig.KeyFile = s.options.PKI.KubeletClient.Key
	o.KubeletConfig.TLSClientConfig.CAFile = s.options.PKI.CA.Cert
	o.KubeletConfig.PreferredAddressTypes = []string{"InternalIP", "Hostname"}
	return nil
}

func (s *Server) identity(o *kubeoptions.ServerRunOptions) {
	files := s.options.PKI
	o.Authentication.ClientCert.ClientCA = files.CA.Cert
	o.Authentication.RequestHeader.ClientCAFile = files.FrontProxyCA.Cert
	o.Authentication.RequestHeader.AllowedNames = []string{pki.FrontProxyName}
	o.Authentication.RequestHeader.UsernameHeaders = []string{"X-Remote-User"}
	o.Authentication.RequestHeader.UIDHeaders = []string{"X-Remote-Uid"}
	o.Authentication.RequestHeader.GroupHeaders = []string{"X-Remote-Group"}
	o.Authentication.RequestHeader.ExtraHeaderPrefixes = []string{"X-Remote-Extra-"}
	o.Authentication.ServiceAccounts.Issuers = []string{s.options.Issuer}
	o.Authentication.ServiceAccounts.KeyFiles = []string{files.Token.Cert}
	o.ServiceAccountSigningKeyFile = files.Token.Key
	o.ProxyClientCertFile = files.FrontProxy.Cert
	o.ProxyClientKeyFile = files.FrontProxy.Key
	o.Authorization.Modes = []string{"Node", "RBAC"}
}

func (s *Server) store(o *kubeoptions.ServerRunOptions) {
	o.Etcd.StorageConfig.Transport.ServerList = []string{s.options.EtcdEndpoint}
	// The store compacts itself, and its health is the health of this process.
	o.Etcd.StorageConfig.CompactionInterval = 0
	o.Etcd.StorageConfig.DBMetricPollInterval = 0
	o.Etcd.StorageConfig.CountMetricPollPeriod = 0
	o.Etcd.SkipHealthEndpoints = true
}

func (s *Server) plugins(a *apiserveroptions.AdmissionOptions) {
	a.EnablePlugins = []string{noderestriction.PluginName}
	// Ours come before webhooks and policies, which judge the finished
	// object, and before quota, which counts it.
	at := slices.Index(a.RecommendedPluginOrder, firstLatePlugin)
	ours := map[string]admission.Interface{untrackedPlugin: untracked{}}
	maps.Copy(ours, s.options.Admission)
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		plugin := ours[name]
		a.Plugins.Register(name, func(io.Reader) (admission.Interface, error) { return plugin, nil })
		a.RecommendedPluginOrder = slices.Insert(slices.Clone(a.RecommendedPluginOrder), at, name)
		at++
	}
}

const firstLatePlugin = "MutatingAdmissionPolicy"

// tune sets what upstream's command line cannot.
func (s *Server) tune(c *controlplane.Config) {
	// Upstream lets every server check every ten seconds that it is still
	// listed behind default/kubernetes, because others may have removed it.
	// There are no others.
	c.Extra.EndpointReconcilerConfig.Interval = time.Minute
	c.Extra.RepairServicesInterval = 10 * time.Minute
}

func certKey(p pki.Pair) apiserveroptions.CertKey {
	return apiserveroptions.CertKey{CertFile: p.Cert, KeyFile: p.Key}
}
