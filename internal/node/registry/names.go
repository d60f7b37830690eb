// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// The forms that the distribution specification allows. No part of a name can
// be "..", start with a dot, or start with "_" as this room's own files do.
var (
	namePattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

const (
	maxName      = 255
	sha256Prefix = "sha256:"
)

func validName(s string) bool { return len(s) <= maxName && namePattern.MatchString(s) }

func validTag(s string) bool { return tagPattern.MatchString(s) }

func validDigest(s string) bool {
	h, ok := strings.CutPrefix(s, sha256Prefix)
	return ok && validHex(h)
}

func validHex(h string) bool { return len(h) == 64 && strings.Trim(h, "0123456789abcdef") == "" }

func hexOf(digest string) string { return strings.TrimPrefix(digest, sha256Prefix) }

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return sha256Prefix + hex.EncodeToString(sum[:])
}
