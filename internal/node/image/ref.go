// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"

	"github.com/distribution/reference"
)

// A Ref is the name of an image, with its defaults filled in.
type Ref struct {
	name   reference.Named
	tag    string
	digest string
}

// maxRef bounds a name: a repository has at most 255 bytes, a tag 128, and the
// longest digest that is accepted (sha512) 135.
const maxRef = 1024

// ParseRef reads the name of an image as Kubernetes does: the registry is
// docker.io and the tag latest when left out; a tag beside a digest is for
// people only.
func ParseRef(s string) (Ref, error) {
	named, err := parseNamed(s)
	if err != nil {
		return Ref{}, &Error{Ref: s, Reason: ReasonInvalidName, Err: fmt.Errorf("couldn't parse image name %q: %w", s, err)}
	}
	r := Ref{name: reference.TrimNamed(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.digest = d.Digest().String()
	}
	if r.tag == "" && r.digest == "" {
		r.tag = "latest"
	}
	return r, nil
}

func parseNamed(s string) (reference.Named, error) {
	if len(s) > maxRef {
		return nil, reference.ErrNameTooLong
	}
	return reference.ParseNormalizedNamed(s)
}

// Repository is the registry and the repository: docker.io/library/nginx.
func (r Ref) Repository() string { return r.name.Name() }

// Registry is the host that is asked, with its port.
func (r Ref) Registry() string { return reference.Domain(r.name) }

// Path is the repository without the registry: library/nginx.
func (r Ref) Path() string { return reference.Path(r.name) }

// Identifier is what the registry is asked for: the digest when there is one.
func (r Ref) Identifier() string {
	if r.digest != "" {
		return r.digest
	}
	return r.tag
}

// String is the full name under which the image is kept.
func (r Ref) String() string {
	if r.digest != "" {
		return r.Repository() + "@" + r.digest
	}
	return r.Repository() + ":" + r.tag
}
