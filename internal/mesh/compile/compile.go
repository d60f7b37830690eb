// SPDX-License-Identifier: Apache-2.0

// Package compile builds routing tables from API objects.
//
// Each object is compiled by itself, so that one change among a thousand
// routes costs one route. The names of hosts are taken from a Route's status,
// where its owner has applied domains and templates: what the status says is
// what is served, and nothing else decides it a second time.
package compile

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

const (
	burstAnnotation = "autoscaling.knative.dev/target-burst-capacity"
	serviceLabel    = "serving.knative.dev/service"
	configLabel     = "serving.knative.dev/configuration"

	// noTLS is why a certificate need not be provisioned.
	noTLS = "TLSNotEnabled"
	https = "https"

	defaultPort = 8080
	// queuePerPlace is how many requests wait for each place in a pod when the
	// pod guards itself, without the burst capacity of the whole revision.
	queuePerPlace = 10
)

// Route compiles a Route. It reports false for one that is not yet, or no
// longer, to be served: its status names no traffic.
func Route(r *servingv1.Route, s Settings) (*routing.Route, bool) {
	if len(r.Status.Traffic) == 0 || r.DeletionTimestamp != nil {
		return nil, false
	}
	version, _ := strconv.ParseUint(r.ResourceVersion, 10, 64)
	c := routeCompiler{route: r, settings: s, out: &routing.Route{
		Name:       routing.Name{Namespace: r.Namespace, Name: r.Name},
		Generation: r.Status.ObservedGeneration,
		Version:    version,
		Created:    r.CreationTimestamp.Time,
		Tags:       map[string]*routing.Split{},
	}}
	c.main()
	c.tags()
	return c.out, true
}

type routeCompiler struct {
	route    *servingv1.Route
	settings Settings
	out      *routing.Route
}

// main adds the hosts of the route itself.
func (c *routeCompiler) main() {
	var shares []routing.Share
	for i := range c.route.Status.Traffic {
		if t := &c.route.Status.Traffic[i]; t.Percent != nil {
			shares = append(shares, routing.Share{Revision: c.revision(t), Percent: int(*t.Percent)})
		}
	}
	split := routing.NewSplit(shares)
	c.local(c.route.Name, "", split)
	if u := c.route.Status.URL; u != nil {
		c.external(u.URL(), "", split)
	}
}

// certificate names what proves a host of the route under HTTPS. A scheme that
// somebody else serves in front of the gateway brings none.
func (c *routeCompiler) certificate(u *url.URL, tag string) (name routing.Name) {
	made := c.route.Status.GetCondition(servingv1.RouteConditionCertificateProvisioned)
	if u.Scheme == https && made.IsTrue() && made.GetReason() != noTLS {
		name = routing.Name{Namespace: c.route.Namespace, Name: routing.CertificateOf(string(c.route.UID), tag)}
	}
	return name
}

// tags adds the hosts of the route's tags. During a rollout a tag has several
// entries, which share its requests as they share the route's.
func (c *routeCompiler) tags() {
	byTag := map[string][]routing.Share{}
	for i := range c.route.Status.Traffic {
		if t := &c.route.Status.Traffic[i]; t.Tag != "" {
			share := routing.Share{Revision: c.revision(t), Percent: 1}
			if t.Percent != nil && *t.Percent > 0 {
				share.Percent = int(*t.Percent)
			}
			byTag[t.Tag] = append(byTag[t.Tag], share)
		}
	}
	for i := range c.route.Status.Traffic {
		t := &c.route.Status.Traffic[i]
		if t.Tag == "" || c.out.Tags[t.Tag] != nil {
			continue
		}
		split := routing.NewSplit(byTag[t.Tag])
		c.out.Tags[t.Tag] = split
		c.local(c.settings.tagged(t.Tag, c.route.Name), t.Tag, split)
		if t.URL != nil {
			c.external(t.URL.URL(), t.Tag, split)
		}
	}
}

func (c *routeCompiler) revision(t *servingv1.TrafficTarget) routing.Name {
	return routing.Name{Namespace: c.route.Namespace, Name: t.RevisionName}
}

// local adds the names by which pods know a host.
func (c *routeCompiler) local(name, tag string, split *routing.Split) {
	name = strings.ToLower(name)
	for _, host := range []string{
		name + "." + c.route.Namespace,
		name + "." + c.route.Namespace + ".svc",
		name + "." + c.route.Namespace + ".svc." + c.settings.ClusterDomain,
	} {
		c.out.Hosts = append(c.out.Hosts, routing.Host{Host: host, Visibility: routing.ClusterLocal, Tag: tag, Split: split})
	}
}

// external adds the host of a URL, unless it is one of the local names.
func (c *routeCompiler) external(u *url.URL, tag string, split *routing.Split) {
	host := strings.ToLower(u.Hostname())
	if host == "" || strings.HasSuffix(host, ".svc."+c.settings.ClusterDomain) {
		return
	}
	certificate := c.certificate(u, tag)
	c.out.Hosts = append(c.out.Hosts, routing.Host{
		Host: host, Visibility: routing.External, Tag: tag, Split: split,
		Certificate: certificate, Redirect: certificate != routing.Name{} && c.settings.redirects(c.route.Annotations),
	})
}

// Revision compiles a Revision.
func Revision(r *servingv1.Revision, s Settings) *routing.Revision {
	out := &routing.Revision{
		Name:          routing.Name{Namespace: r.Namespace, Name: r.Name},
		Service:       r.Labels[serviceLabel],
		Configuration: r.Labels[configLabel],
		Port:          defaultPort,
		Timeout:       s.Timeout,
		ResponseStart: seconds(r.Spec.ResponseStartTimeoutSeconds),
		Idle:          seconds(r.Spec.IdleTimeoutSeconds),
	}
	if t := seconds(r.Spec.TimeoutSeconds); t > 0 {
		out.Timeout = t
	}
	if ports := r.Spec.GetContainer().Ports; len(ports) > 0 {
		if p := ports[0].ContainerPort; p > 0 && p <= 65535 {
			out.Port = uint16(p)
		}
		if ports[0].Name == routing.H2C.String() {
			out.Protocol = routing.H2C
		}
	}
	if cc := r.Spec.ContainerConcurrency; cc != nil && *cc > 0 {
		out.Concurrency = int(*cc)
		if s.burst(r.Annotations) == 0 {
			out.Queue = queuePerPlace * out.Concurrency
		}
	}
	return out
}

func seconds(n *int64) time.Duration {
	if n == nil || *n < 0 {
		return 0
	}
	return time.Duration(*n) * time.Second
}
