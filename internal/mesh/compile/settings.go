// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"strconv"
	"strings"
	"time"

	"knative.dev/networking/pkg/apis/networking"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// The ConfigMaps that settings are read from.
const (
	Autoscaler = "config-autoscaler"
	Defaults   = "config-defaults"
	Features   = "config-features"
	Network    = "config-network"
)

// Settings are the platform's settings that tables depend on.
type Settings struct {
	ClusterDomain string
	TagTemplate   string        // of a tag's host name
	Burst         float64       // target burst capacity of revisions that name none
	Timeout       time.Duration // of revisions that name none
	TagHeader     bool
	Redirect      bool // plain HTTP to HTTPS, where there is HTTPS
}

// DefaultSettings are the settings while no ConfigMap says otherwise.
func DefaultSettings() Settings {
	return Settings{
		ClusterDomain: "cluster.local",
		TagTemplate:   "{{.Tag}}-{{.Name}}",
		Burst:         211,
		Timeout:       300 * time.Second,
	}
}

// With returns the settings as the data of a ConfigMap changes them. Values
// that cannot be read keep what was; admission has refused them anyway.
func (s Settings) With(configMap string, data map[string]string) Settings {
	base := DefaultSettings()
	switch configMap {
	case Autoscaler:
		s.Burst = base.Burst
		if f, err := strconv.ParseFloat(data["target-burst-capacity"], 64); err == nil {
			s.Burst = f
		}
	case Defaults:
		s.Timeout = base.Timeout
		if n, err := strconv.ParseInt(data["revision-timeout-seconds"], 10, 64); err == nil && n > 0 {
			s.Timeout = time.Duration(n) * time.Second
		}
	case Features:
		s.TagHeader = strings.EqualFold(data["tag-header-based-routing"], "enabled")
	case Network:
		s.TagTemplate = base.TagTemplate
		for _, key := range []string{"tagTemplate", "tag-template"} {
			if t := data[key]; t != "" {
				s.TagTemplate = t
			}
		}
		s.Redirect = false
		for _, key := range []string{"httpProtocol", "http-protocol"} {
			if v := data[key]; v != "" {
				s.Redirect = redirected(v)
			}
		}
	}
	return s
}

func redirected(protocol string) bool { return strings.EqualFold(protocol, "redirected") }

// redirects reports whether an object's hosts send plain HTTP on to HTTPS.
func (s Settings) redirects(annotations map[string]string) bool {
	if own := networking.GetHTTPProtocol(annotations); own != "" {
		return redirected(own)
	}
	return s.Redirect
}

// Options are the settings that a table keeps itself.
func (s Settings) Options() routing.Options {
	return routing.Options{TagHeader: s.TagHeader, ClusterDomain: s.ClusterDomain}
}

// tagged is the first label of a tag's local name. Tag templates join the two
// names; they cannot do more, since they may not contain a dot.
func (s Settings) tagged(tag, name string) string {
	out := s.TagTemplate
	for _, v := range [][2]string{{"Tag", tag}, {"Name", name}} {
		out = strings.NewReplacer("{{."+v[0]+"}}", v[1], "{{ ."+v[0]+" }}", v[1]).Replace(out)
	}
	return out
}

// burst is the target burst capacity of a revision.
func (s Settings) burst(annotations map[string]string) float64 {
	if f, err := strconv.ParseFloat(annotations[burstAnnotation], 64); err == nil {
		return f
	}
	return s.Burst
}
