// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"hash/adler32"
	"strconv"
	"strings"
)

// CertificateOf is the name of the certificate of a route, or of one of its
// tags, as Knative gives it. Who makes it and who serves it agree on it here.
func CertificateOf(routeUID, tag string) string {
	name := "route-" + routeUID
	if tag != "" {
		name += "-" + strconv.FormatUint(uint64(adler32.Checksum([]byte(tag))), 10)
	}
	return name
}

// A DomainMapping's status tells in annotations where it leads.
const (
	// TargetAnnotation holds the name in the cluster of what the domain stands for.
	TargetAnnotation = "serving.sonagi.dev/target"
	// BackendAnnotation holds the address and port of a Service that is none
	// of a route or revision: 10.43.0.7:80, with /h2c behind it for HTTP/2.
	BackendAnnotation = "serving.sonagi.dev/backend"
)

const mappings = "domain/"

// MappingOf is the name under which the table keeps a domain mapping. It is one
// that no route can have.
func MappingOf(n Name) Name { return Name{Namespace: n.Namespace, Name: mappings + n.Name} }

// IsMapping reports whether a name is one of MappingOf's.
func IsMapping(n Name) bool { return strings.HasPrefix(n.Name, mappings) }

// Mapped is the name that MappingOf was given.
func Mapped(n Name) Name {
	return Name{Namespace: n.Namespace, Name: strings.TrimPrefix(n.Name, mappings)}
}
