// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

func up(d *dataDir) *cobra.Command {
	var f upFlags
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the platform and keep it running until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			if err := f.apply(c, &s); err != nil {
				return err
			}
			return app.Up(c.Context(), s, app.UpOptions{
				Out: c.OutOrStdout(), Deploy: f.deploy, MergeKubeconfig: f.merge, PortGiven: c.Flags().Changed("port"),
				SecurePortGiven: c.Flags().Changed("https-port"),
			})
		},
	}
	f.register(c)
	return c
}

// upFlags are the flags of "up"; those that are given change the kept settings.
type upFlags struct {
	gateway, secure, api, registry, kubelet, internal uint16
	domain, podCIDR, serviceCIDR, bridge              string
	node, logLevel, deploy                            string
	insecure                                          []string
	merge                                             bool
}

func (f *upFlags) register(c *cobra.Command) {
	def := app.Defaults()
	fl := c.Flags()
	fl.Uint16Var(&f.gateway, "port", def.GatewayPort, "port on which services answer, on every address of this machine")
	fl.Uint16Var(&f.secure, "https-port", def.SecurePort, "port on which services answer by HTTPS, on every address of this machine")
	fl.Uint16Var(&f.api, "api-port", def.APIPort, "port of the Kubernetes API, on loopback")
	fl.Uint16Var(&f.registry, "registry-port", def.RegistryPort, "port of the built-in image registry, on loopback")
	fl.Uint16Var(&f.kubelet, "kubelet-port", def.KubeletPort, "port of the node's own API, on loopback")
	fl.Uint16Var(&f.internal, "internal-port", def.InternalPort, "port on the pod bridge where pods reach services")
	fl.StringVar(&f.domain, "domain", def.Domain, "default domain of services")
	fl.StringVar(&f.podCIDR, "pod-cidr", def.PodCIDR.String(), "addresses of pods")
	fl.StringVar(&f.serviceCIDR, "service-cidr", def.ServiceCIDR.String(), "addresses of Kubernetes Services")
	fl.StringVar(&f.bridge, "bridge", def.Bridge, "name of the pod bridge")
	fl.StringVar(&f.node, "node-name", "", "name of the node (default the host's name)")
	fl.StringVar(&f.logLevel, "log-level", def.LogLevel, "debug, info, warn or error")
	fl.StringVar(&f.deploy, "deploy", "", "on the first start, deploy this source directory as a service")
	fl.StringSliceVar(&f.insecure, "insecure-registry", nil, "registry HOST[:PORT] that is spoken to by plain HTTP (loopback always is)")
	fl.BoolVar(&f.merge, "merge-kubeconfig", false, "also add a context named sonagi to your own kubeconfig")
}

// apply puts the flags that were given on the command line into s.
func (f *upFlags) apply(c *cobra.Command, s *app.Settings) error {
	given := c.Flags().Changed
	for _, p := range []struct {
		flag string
		from uint16
		to   *uint16
	}{
		{"port", f.gateway, &s.GatewayPort}, {"https-port", f.secure, &s.SecurePort}, {"api-port", f.api, &s.APIPort}, {"registry-port", f.registry, &s.RegistryPort},
		{"kubelet-port", f.kubelet, &s.KubeletPort}, {"internal-port", f.internal, &s.InternalPort},
	} {
		if given(p.flag) {
			*p.to = p.from
		}
	}
	for _, p := range []struct {
		flag string
		from string
		to   *string
	}{{"domain", f.domain, &s.Domain}, {"bridge", f.bridge, &s.Bridge}, {"log-level", f.logLevel, &s.LogLevel}} {
		if given(p.flag) {
			*p.to = p.from
		}
	}
	s.NodeName = cmp.Or(f.node, s.NodeName)
	if given("insecure-registry") {
		s.InsecureRegistries = f.insecure
	}
	for _, p := range []struct {
		flag, from string
		to         *netip.Prefix
	}{{"pod-cidr", f.podCIDR, &s.PodCIDR}, {"service-cidr", f.serviceCIDR, &s.ServiceCIDR}} {
		if !given(p.flag) {
			continue
		}
		prefix, err := netip.ParsePrefix(p.from)
		if err != nil || !prefix.Addr().Is4() || prefix.Bits() > 24 {
			return fmt.Errorf("--%s %q is not an IPv4 range of at least 256 addresses, such as 10.42.0.0/16", p.flag, p.from)
		}
		*p.to = prefix.Masked()
	}
	return nil
}
