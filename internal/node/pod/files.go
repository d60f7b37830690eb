// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Hostname is what the pod calls itself: at most 63 characters.
func Hostname(p *corev1.Pod) string {
	if p.Spec.HostnameOverride != nil && *p.Spec.HostnameOverride != "" {
		return *p.Spec.HostnameOverride
	}
	name := p.Spec.Hostname
	if name == "" {
		name = p.Name
	}
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}

// Domain is the domain of the pod's name, if it has one.
func Domain(p *corev1.Pod, cluster string) string {
	if p.Spec.Subdomain == "" || p.Spec.HostnameOverride != nil {
		return ""
	}
	return p.Spec.Subdomain + "." + p.Namespace + ".svc." + cluster
}

// NodeName is the name the kernel of the pod's namespace has.
func NodeName(p *corev1.Pod, cluster string) string {
	if d := Domain(p, cluster); d != "" && isTrue(p.Spec.SetHostnameAsFQDN) {
		return Hostname(p) + "." + d
	}
	return Hostname(p)
}

// Hosts is the /etc/hosts of a pod with that address.
func Hosts(p *corev1.Pod, ip, cluster string) string {
	var b strings.Builder
	b.WriteString("# Kubernetes-managed hosts file.\n")
	b.WriteString("127.0.0.1\tlocalhost\n")
	b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n")
	b.WriteString("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	if ip != "" {
		name := Hostname(p)
		if d := Domain(p, cluster); d != "" {
			b.WriteString(ip + "\t" + name + "." + d + "\t" + name + "\n")
		} else {
			b.WriteString(ip + "\t" + name + "\n")
		}
	}
	b.WriteString(hostAliases(p))
	return b.String()
}

// HostNetworkHosts is the /etc/hosts of a pod in the machine's network, given
// the machine's own.
func HostNetworkHosts(p *corev1.Pod, machine string) string {
	return "# Kubernetes-managed hosts file (host network).\n" + machine + hostAliases(p)
}

func hostAliases(p *corev1.Pod) string {
	if len(p.Spec.HostAliases) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n# Entries added by HostAliases.\n")
	for _, a := range p.Spec.HostAliases {
		b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
	}
	return b.String()
}

// DNS is the resolver configuration of the machine, and the cluster's part.
type DNS struct {
	Cluster []string // addresses of the cluster's servers
	Domain  string   // of the cluster
	Host    Resolver
}

// A Resolver is the content of a resolv.conf.
type Resolver struct {
	Servers, Searches, Options []string
}

// Limits of what resolvers read.
const (
	maxServers     = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// ResolvConf is the /etc/resolv.conf of a pod.
func ResolvConf(p *corev1.Pod, d DNS) string {
	r := Resolver{}
	switch policy(p) {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		r = d.Host
		// A server on the machine's loopback cannot be reached from a pod of
		// its own network; the cluster's servers ask it for the pod.
		if !p.Spec.HostNetwork && slices.ContainsFunc(r.Servers, func(s string) bool { return strings.HasPrefix(s, "127.") || s == "::1" }) {
			r.Servers = d.Cluster
		}
	default:
		svc := "svc." + d.Domain
		r = Resolver{
			Servers:  d.Cluster,
			Searches: append([]string{p.Namespace + "." + svc, svc, d.Domain}, d.Host.Searches...),
			Options:  []string{"ndots:5"},
		}
	}
	if own := p.Spec.DNSConfig; own != nil {
		r.Servers = slices.Concat(r.Servers, own.Nameservers)
		r.Searches = slices.Concat(r.Searches, own.Searches)
		r.Options = mergeOptions(r.Options, own.Options)
	}
	return r.limited().String()
}

func policy(p *corev1.Pod) corev1.DNSPolicy {
	switch p.Spec.DNSPolicy {
	case corev1.DNSNone, corev1.DNSDefault:
		return p.Spec.DNSPolicy
	case corev1.DNSClusterFirstWithHostNet:
		return corev1.DNSClusterFirst
	}
	if p.Spec.HostNetwork {
		return corev1.DNSDefault
	}
	return corev1.DNSClusterFirst
}

func mergeOptions(have []string, more []corev1.PodDNSConfigOption) []string {
	out := slices.Clone(have)
	for _, o := range more {
		text := o.Name
		if o.Value != nil && *o.Value != "" {
			text += ":" + *o.Value
		}
		at := slices.IndexFunc(out, func(s string) bool { name, _, _ := strings.Cut(s, ":"); return name == o.Name })
		if at >= 0 {
			out[at] = text
		} else {
			out = append(out, text)
		}
	}
	return out
}

func (r Resolver) limited() Resolver {
	r.Servers, r.Searches = unique(r.Servers), unique(r.Searches)
	r.Servers = r.Servers[:min(len(r.Servers), maxServers)]
	r.Searches = r.Searches[:min(len(r.Searches), maxSearches)]
	for len(strings.Join(r.Searches, " ")) > maxSearchChars {
		r.Searches = r.Searches[:len(r.Searches)-1]
	}
	return r
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// String is the text of a resolv.conf.
func (r Resolver) String() string {
	var b strings.Builder
	if len(r.Searches) > 0 {
		b.WriteString("search " + strings.Join(r.Searches, " ") + "\n")
	}
	for _, s := range r.Servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(r.Options) > 0 {
		b.WriteString("options " + strings.Join(r.Options, " ") + "\n")
	}
	return b.String()
}

// ParseResolvConf reads a resolv.conf.
func ParseResolvConf(text string) Resolver {
	r := Resolver{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0][0] == '#' || words[0][0] == ';' {
			continue
		}
		switch words[0] {
		case "nameserver":
			r.Servers = append(r.Servers, words[1])
		case "search", "domain":
			r.Searches = nil
			for _, w := range words[1:] {
				if w != "." {
					r.Searches = append(r.Searches, strings.TrimSuffix(w, "."))
				}
			}
		case "options":
			r.Options = unique(append(r.Options, words[1:]...))
		}
	}
	return r
}
