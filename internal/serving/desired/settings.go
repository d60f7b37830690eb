// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/serving/pkg/apis/config"
)

// Settings are what the ConfigMaps in knative-serving say, as far as builders need it.
type Settings struct {
	ClusterDomain string // cluster.local
	Defaults      *config.Defaults
	Features      *config.Features
	Network       *networkingconfig.Config
	Domains       []Domain

	InitialScale     int32
	ProgressDeadline time.Duration
	RuntimeClasses   []RuntimeClass
	SpreadOverNodes  bool // prefer a node for each pod of a revision
	LogURLTemplate   string
	VarLog           bool // keep what containers write below /var/log
	// ImageSecondsToSay and SkipTags are for whoever resolves tags to digests.
	DigestTimeout time.Duration
	SkipTags      map[string]bool // registries whose tags stay tags
	Schedulable   bool            // an unschedulable pod is no news: nodes will come
	GC            Retention
}

// Retention says which revisions outlive their use.
type Retention struct {
	SinceCreate, SinceActive time.Duration // negative: for ever
	Min, Max                 int64         // Max negative: no bound
}

// A Domain is given to routes whose labels match.
type Domain struct {
	Name     string
	Selector map[string]string
}

// A RuntimeClass is given to pods whose labels match.
type RuntimeClass struct {
	Name     string
	Selector map[string]string
}

// ErrDomain is wrapped by errors about host names that templates yield.
var ErrDomain = errors.New("domain name error")

// bySelector returns the name with the most specific selector that matches; the first in
// order of names among equals.
func bySelector[T any](all []T, of func(T) (string, map[string]string), labels map[string]string) string {
	best, specific := "", -1
	for _, one := range all {
		name, selector := of(one)
		if !subset(selector, labels) || len(selector) < specific {
			continue
		}
		if len(selector) > specific || name < best {
			best, specific = name, len(selector)
		}
	}
	return best
}

func subset(selector, labels map[string]string) bool {
	for key, want := range selector {
		if have, ok := labels[key]; !ok || have != want {
			return false
		}
	}
	return true
}

// domain is the domain of routes with these labels.
func (s *Settings) domain(labels map[string]string) string {
	if labels[visibilityLabel] == clusterLocal {
		return "svc." + s.ClusterDomain
	}
	return bySelector(s.Domains, func(d Domain) (string, map[string]string) { return d.Name, d.Selector }, labels)
}

func (s *Settings) runtimeClass(labels map[string]string) *string {
	name := bySelector(s.RuntimeClasses, func(c RuntimeClass) (string, map[string]string) { return c.Name, c.Selector }, labels)
	if name == "" {
		return nil
	}
	return &name
}

// Hostname is the first part of a host name: the route's name, joined with a tag if there is one.
func (s *Settings) Hostname(route, tag string) (string, error) {
	if tag == "" {
		return route, nil
	}
	var out bytes.Buffer
	if err := s.Network.GetTagTemplate().Execute(&out, networkingconfig.TagTemplateValues{Name: route, Tag: tag}); err != nil {
		return "", fmt.Errorf("%w: error executing the TagTemplate: %w", ErrDomain, err)
	}
	return out.String(), nil
}

// Host is the host name of a route or tag, by its visibility.
func (s *Settings) Host(route Named, hostname string, local bool) (string, error) {
	if local {
		return hostname + "." + route.GetNamespace() + ".svc." + s.ClusterDomain, nil
	}
	labels := maps.Clone(route.GetLabels())
	delete(labels, visibilityLabel)
	var out bytes.Buffer
	err := s.Network.GetDomainTemplate().Execute(&out, networkingconfig.DomainTemplateValues{
		Name: hostname, Namespace: route.GetNamespace(), Domain: s.domain(labels),
		Annotations: route.GetAnnotations(), Labels: labels,
	})
	if err != nil {
		return "", fmt.Errorf("%w: error executing the DomainTemplate: %w", ErrDomain, err)
	}
	if errs := validation.IsFullyQualifiedDomainName(field.NewPath("url"), out.String()); len(errs) > 0 {
		return "", fmt.Errorf("%w: invalid domain name %q: %w", ErrDomain, out.String(), errs.ToAggregate())
	}
	return out.String(), nil
}

// Local reports whether a route, or the tag whose placeholder Service carries these labels,
// is not to be seen from outside.
func (s *Settings) Local(route Named, placeholder map[string]string) bool {
	return s.domain(route.GetLabels()) == "svc."+s.ClusterDomain || placeholder[visibilityLabel] != ""
}

// LogURL is where a revision's logs are, if that is known.
func (s *Settings) LogURL(uid string) string {
	return strings.ReplaceAll(s.LogURLTemplate, "${REVISION_UID}", uid)
}
