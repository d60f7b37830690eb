// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxLayers is how many layers overlayfs can stack.
const maxLayers = 500

type descriptor struct {
	MediaType   types.MediaType   `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

func thisPlatform() platform { return platform{OS: runtime.GOOS, Architecture: runtime.GOARCH} }

// manifest is what manifests and indexes have, together: old ones do not say
// which they are.
type manifest struct {
	MediaType types.MediaType `json:"mediaType"`
	Config    *descriptor     `json:"config"`
	Layers    []descriptor    `json:"layers"`
	Manifests []descriptor    `json:"manifests"`
	FSLayers  []any           `json:"fsLayers"`
}

func parseManifest(b []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: manifest is not JSON: %w", ErrCorrupt, err)
	}
	switch {
	case m.FSLayers != nil:
		return m, errors.New("image has the obsolete manifest schema 1: push it again with a current tool")
	case m.isIndex() == (m.Config != nil):
		return m, fmt.Errorf("%w: neither a manifest nor an index", ErrCorrupt)
	case len(m.Layers) > maxLayers:
		return m, fmt.Errorf("%w: image has %d layers, at most %d can be mounted", ErrTooLarge, len(m.Layers), maxLayers)
	}
	for _, d := range m.all() {
		if err := checkDigest(d.Digest); err != nil {
			return m, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if d.Size < 0 {
			return m, fmt.Errorf("%w: %s has size %d", ErrCorrupt, d.Digest, d.Size)
		}
	}
	return m, nil
}

func (m manifest) isIndex() bool { return m.Manifests != nil }

func (m manifest) all() []descriptor {
	all := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	return all
}

// choose finds the entry of an index that is for this machine.
func (m manifest) choose(want platform) (descriptor, error) {
	var has []string
	var found *descriptor
	for i, d := range m.Manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" { // such as attestations
			if d.Platform == nil && len(m.Manifests) == 1 {
				return d, nil
			}
			continue
		}
		has = append(has, d.Platform.String())
		if d.Platform.OS != want.OS || d.Platform.Architecture != want.Architecture {
			continue
		}
		if found == nil || betterVariant(want, d.Platform.Variant, found.Platform.Variant) {
			found = &m.Manifests[i]
		}
	}
	if found == nil {
		return descriptor{}, fmt.Errorf("%w: this machine is %s, the image has %s", ErrPlatform, want, clip(strings.Join(has, ", "), 256))
	}
	return *found, nil
}

// betterVariant prefers the newest arm that every such machine has (v7), and
// elsewhere the plainest.
func betterVariant(want platform, a, b string) bool {
	if want.Architecture == "arm" {
		return a > b && a <= "v7"
	}
	return a < b
}

// configFile is the part of an image's configuration that is used.
type configFile struct {
	OS           string    `json:"os"`
	Architecture string    `json:"architecture"`
	Created      time.Time `json:"created"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	Config struct {
		User         string
		Env          []string
		Entrypoint   []string
		Cmd          []string
		WorkingDir   string
		StopSignal   string
		Labels       map[string]string
		ExposedPorts map[string]struct{}
		Volumes      map[string]struct{}
	} `json:"config"`
}

// parseConfig reads the configuration of an image with so many layers.
func parseConfig(b []byte, layers int) (configFile, error) {
	var c configFile
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%w: image configuration: %w", ErrCorrupt, err)
	}
	if n := len(c.RootFS.DiffIDs); n != layers {
		return c, fmt.Errorf("%w: image has %d layers, its configuration says %d", ErrCorrupt, layers, n)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return c, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	is, want := platform{OS: c.OS, Architecture: c.Architecture}, thisPlatform()
	if is.OS != "" && is.OS != want.OS || is.Architecture != "" && is.Architecture != want.Architecture {
		return c, fmt.Errorf("%w: this machine is %s, the image is for %s", ErrPlatform, want, is)
	}
	return c, nil
}

func (c configFile) config() Config {
	return Config{
		Entrypoint:   c.Config.Entrypoint,
		Cmd:          c.Config.Cmd,
		Env:          c.Config.Env,
		User:         c.Config.User,
		WorkingDir:   c.Config.WorkingDir,
		StopSignal:   c.Config.StopSignal,
		ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)),
		Volumes:      slices.Sorted(maps.Keys(c.Config.Volumes)),
		Labels:       c.Config.Labels,
	}
}
