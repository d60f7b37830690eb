// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
)

// A Credential is one way to log in to a registry.
type Credential struct {
	Username      string
	Password      string
	IdentityToken string
	RegistryToken string
}

// Credentials are what pull secrets hold: which logins go with which images.
// The zero value pulls without logging in.
type Credentials struct {
	entries []entry
}

type entry struct {
	glob  string // host, or host/path; the host may have wildcards
	login Credential
}

// ParseDockerConfigJSON reads a secret of type kubernetes.io/dockerconfigjson.
func ParseDockerConfigJSON(data []byte) (Credentials, error) {
	var file struct {
		Auths json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return Credentials{}, errBadSecret
	}
	if len(file.Auths) == 0 {
		return Credentials{}, nil
	}
	return ParseDockerCfg(file.Auths)
}

// errBadSecret does not quote the parser: its words may hold a part of the secret.
var errBadSecret = errors.New("pull secret is not valid JSON of its type")

// ParseDockerCfg reads a secret of the legacy type kubernetes.io/dockercfg.
func ParseDockerCfg(data []byte) (Credentials, error) {
	var file map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return Credentials{}, errBadSecret
	}
	var c Credentials
	for location, e := range file {
		glob, err := globOf(location)
		if err != nil {
			continue // one bad location must not take the others' logins away
		}
		login := Credential{e.Username, e.Password, e.IdentityToken, e.RegistryToken}
		if e.Auth != "" {
			if login.Username, login.Password, err = decodeAuth(e.Auth); err != nil {
				return Credentials{}, fmt.Errorf("pull secret entry %q: %w", location, err)
			}
		}
		c.entries = append(c.entries, entry{glob, login})
	}
	c.sort()
	return c, nil
}

// Join is all logins of several secrets; earlier secrets are tried first.
func Join(all ...Credentials) Credentials {
	var c Credentials
	for _, one := range all {
		c.entries = append(c.entries, one.entries...)
	}
	c.sort()
	return c
}

// sort puts longer paths of a host before shorter ones.
func (c *Credentials) sort() {
	slices.SortStableFunc(c.entries, func(a, b entry) int { return strings.Compare(b.glob, a.glob) })
}

func globOf(location string) (string, error) {
	if !strings.HasPrefix(location, "https://") && !strings.HasPrefix(location, "http://") {
		location = "https://" + location
	}
	u, err := url.Parse(location)
	if err != nil {
		return "", err
	}
	p := u.Path
	if strings.HasPrefix(p, "/v1/") || strings.HasPrefix(p, "/v2/") {
		p = p[3:]
	}
	if p == "/" {
		p = ""
	}
	return u.Host + p, nil
}

func decodeAuth(field string) (user, password string, err error) {
	enc := base64.RawStdEncoding
	if strings.HasSuffix(strings.TrimSpace(field), "=") {
		enc = base64.StdEncoding
	}
	plain, err := enc.DecodeString(field)
	if err != nil {
		return "", "", errors.New("auth is not base64")
	}
	user, password, ok := strings.Cut(string(plain), ":")
	if !ok {
		return "", "", errors.New("auth is not base64 of username:password")
	}
	return user, password, nil
}

// dockerHub is where logins for docker.io are kept.
const dockerHub = "index.docker.io"

// For lists the logins to try for a repository, the most specific first.
func (c Credentials) For(repository string) []Credential {
	var found []Credential
	for _, e := range c.entries {
		if globMatches(e.glob, repository) {
			found = append(found, e.login)
		}
	}
	host, _, _ := strings.Cut(repository, "/")
	if len(found) > 0 || (host != "docker.io" && host != dockerHub) {
		return found
	}
	for _, e := range c.entries {
		if e.glob == dockerHub {
			found = append(found, e.login)
		}
	}
	return found
}

// globMatches compares a location with a repository: the same port, as many
// labels of the host name, each a match, and a path that starts with the
// location's.
func globMatches(glob, repository string) bool {
	globLabels, globPort, globPath, ok1 := splitLocation(glob)
	labels, port, p, ok2 := splitLocation(repository)
	if !ok1 || !ok2 || globPort != port || len(globLabels) != len(labels) || !strings.HasPrefix(p, globPath) {
		return false
	}
	for i, g := range globLabels {
		if ok, err := path.Match(g, labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func splitLocation(s string) (labels []string, port, p string, ok bool) {
	u, err := url.Parse("https://" + s)
	if err != nil {
		return nil, "", "", false
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		host, port = u.Host, ""
	}
	return strings.Split(host, "."), port, u.Path, true
}
