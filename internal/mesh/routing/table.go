// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"crypto/tls"
	"maps"
	"strings"
)

// Table holds all routes and revisions. It does not change.
type Table struct {
	hosts     map[string]*entry
	routes    map[Name]*Route
	revisions map[Name]*Revision
	contested map[string]struct{} // hosts that more than one route has claimed
	proofs    map[Name]*Certificate
	options   Options
}

// Options are the settings that hold for all routes.
type Options struct {
	// TagHeader lets requests choose a tag by the header Knative-Serving-Tag.
	TagHeader bool
	// ClusterDomain ends the full names of Services.
	ClusterDomain string
}

// entry is a host in the table.
type entry struct {
	Host
	route *Route
}

// Query is what a request is matched by.
type Query struct {
	Host     string // lower case, without port
	Internal bool   // it came in through a cluster-local listener
	Secure   bool   // it came by TLS
	Tag      string // value of the header Knative-Serving-Tag
}

// Target is where a request goes.
type Target struct {
	Revision *Revision
	Route    Name
	// Tag is the tag that was matched. TagHeader says that tags can be chosen
	// by header; then the app is told the tag, or that there was none.
	Tag       string
	TagHeader bool
}

// Refusal says why there is no target.
type Refusal uint8

// The refusals.
const (
	Matched Refusal = iota
	UnknownHost
	NotVisible
	NoTraffic
	UnknownRevision // the route is known before its revision is: this passes
	Insecure        // the host is to be asked by HTTPS
)

// String returns the rule that refused.
func (r Refusal) String() string {
	return [...]string{"matched", "no route has this host", "host is cluster-local", "route has no traffic target", "revision is not known yet", "host is redirected to HTTPS"}[r]
}

// Match finds the target of a request.
func (t *Table) Match(q Query) (Target, Refusal) {
	if t == nil {
		return Target{}, UnknownHost
	}
	e, ok := t.hosts[q.Host]
	if !ok {
		return t.matchRevision(q)
	}
	if e.Visibility == ClusterLocal && !q.Internal {
		return Target{}, NotVisible
	}
	if e.Redirect && !q.Secure && !q.Internal {
		return Target{}, Insecure
	}
	if e.Alias != "" {
		q.Host, q.Internal = e.Alias, true
		if e, ok = t.hosts[q.Host]; !ok || e.Alias != "" {
			return t.matchRevision(q)
		}
	}
	target := Target{Route: e.route.Name, Tag: e.Tag, TagHeader: t.options.TagHeader}
	split := e.Split
	if t.options.TagHeader && e.Tag == "" && q.Tag != "" {
		if tagged, ok := e.route.Tags[q.Tag]; ok {
			split, target.Tag = tagged, q.Tag
		}
	}
	name, ok := split.Next()
	if !ok {
		return target, NoTraffic
	}
	target.Revision, ok = t.revisions[name]
	if !ok {
		return target, UnknownRevision
	}
	return target, Matched
}

// matchRevision finds the revision whose own Service a host is. Pods alone know those names.
func (t *Table) matchRevision(q Query) (Target, Refusal) {
	name, rest, _ := strings.Cut(q.Host, ".")
	namespace, rest, _ := strings.Cut(rest, ".")
	service, domain, full := strings.Cut(rest, ".")
	revision, ok := t.revisions[Name{Namespace: namespace, Name: name}]
	switch {
	case !ok, rest != "" && service != "svc", full && domain != t.options.ClusterDomain:
		return Target{}, UnknownHost
	case !q.Internal:
		return Target{}, NotVisible
	}
	return Target{Revision: revision}, Matched
}

// Route returns a route.
func (t *Table) Route(name Name) (*Route, bool) {
	if t == nil {
		return nil, false
	}
	r, ok := t.routes[name]
	return r, ok
}

// Revision returns a revision.
func (t *Table) Revision(name Name) (*Revision, bool) {
	if t == nil {
		return nil, false
	}
	r, ok := t.revisions[name]
	return r, ok
}

// Certificate returns what proves a host, or nil.
func (t *Table) Certificate(host string) *tls.Certificate {
	if t == nil {
		return nil
	}
	e, ok := t.hosts[host]
	if !ok {
		return nil
	}
	if c, ok := t.proofs[e.Host.Certificate]; ok {
		return c.TLS
	}
	return nil
}

// Proven reports whether a certificate is known.
func (t *Table) Proven(name Name) bool {
	if t == nil {
		return false
	}
	_, ok := t.proofs[name]
	return ok
}

// Revisions calls fn with all revisions.
func (t *Table) Revisions(fn func(*Revision)) {
	if t == nil {
		return
	}
	for _, r := range t.revisions {
		fn(r)
	}
}

// Size returns how many hosts, routes and revisions the table holds.
func (t *Table) Size() (hosts, routes, revisions int) {
	if t == nil {
		return 0, 0, 0
	}
	return len(t.hosts), len(t.routes), len(t.revisions)
}

// Edit starts a new table from t, which may be nil. The maps are copied once
// an edit, not once a change: many changes in one edit cost little more than
// one, and one among 1,000 routes some 100 µs.
func (t *Table) Edit() *Edit {
	e := &Edit{table: &Table{}}
	if t != nil {
		*e.table = *t
	}
	return e
}

// Edit collects changes for a new table. It is used by one goroutine.
type Edit struct {
	table *Table
	// already copied
	hosts, routes, revisions, contested, proofs bool

	deleted []Name
}

// SetOptions replaces the options.
func (e *Edit) SetOptions(o Options) { e.table.options = o }

// SetRevision adds or replaces a revision.
func (e *Edit) SetRevision(r *Revision) {
	own(&e.table.revisions, &e.revisions)
	if old := e.table.revisions[r.Name]; old != nil {
		r.Counts = old.Counts
	}
	if r.Counts == nil {
		r.Counts = &Counts{}
	}
	e.table.revisions[r.Name] = r
}

// DeleteRevision removes a revision.
func (e *Edit) DeleteRevision(name Name) {
	own(&e.table.revisions, &e.revisions)
	delete(e.table.revisions, name)
	e.deleted = append(e.deleted, name)
}

// SetCertificate adds or replaces a certificate.
func (e *Edit) SetCertificate(c *Certificate) {
	own(&e.table.proofs, &e.proofs)
	e.table.proofs[c.Name] = c
}

// DeleteCertificate removes a certificate.
func (e *Edit) DeleteCertificate(name Name) {
	if _, ok := e.table.proofs[name]; ok {
		own(&e.table.proofs, &e.proofs)
		delete(e.table.proofs, name)
	}
}

// Certificates returns the names of all certificates in the new table.
func (e *Edit) Certificates() (names []Name) {
	for n := range e.table.proofs {
		names = append(names, n)
	}
	return names
}

// Gone returns the revisions that were deleted, and not added again.
func (e *Edit) Gone() (names []Name) {
	for _, n := range e.deleted {
		if _, ok := e.table.revisions[n]; !ok {
			names = append(names, n)
		}
	}
	return names
}

// SetRoute adds or replaces a route.
func (e *Edit) SetRoute(r *Route) {
	own(&e.table.routes, &e.routes)
	own(&e.table.hosts, &e.hosts)
	old := e.table.routes[r.Name]
	e.table.routes[r.Name] = r
	if old != nil {
		inherit(r, old)
	}
	for _, h := range r.Hosts {
		e.claim(h, r)
	}
	if old != nil {
		e.release(old)
	}
}

// DeleteRoute removes a route and frees its hosts.
func (e *Edit) DeleteRoute(name Name) {
	old, ok := e.table.routes[name]
	if !ok {
		return
	}
	own(&e.table.routes, &e.routes)
	own(&e.table.hosts, &e.hosts)
	delete(e.table.routes, name)
	e.release(old)
}

// claim gives a host to a route, unless an older one has it.
func (e *Edit) claim(h Host, r *Route) {
	holder, taken := e.table.hosts[h.Host]
	if taken && holder.route.Name != r.Name {
		own(&e.table.contested, &e.contested)
		e.table.contested[h.Host] = struct{}{}
		if !older(r, holder.route) {
			return
		}
	}
	e.table.hosts[h.Host] = &entry{Host: h, route: r}
}

// release frees the hosts that a route still holds. Whoever has claimed one
// too gets it.
func (e *Edit) release(old *Route) {
	for _, h := range old.Hosts {
		if holder := e.table.hosts[h.Host]; holder == nil || holder.route != old {
			continue
		}
		delete(e.table.hosts, h.Host)
		if _, ok := e.table.contested[h.Host]; !ok {
			continue
		}
		if next, ok := e.heir(h.Host); ok {
			e.table.hosts[h.Host] = next
		}
	}
}

// heir finds the oldest route that claims a host. It looks at every route, but
// only for a host that more than one has claimed.
func (e *Edit) heir(host string) (*entry, bool) {
	var best *entry
	for _, r := range e.table.routes {
		for _, h := range r.Hosts {
			if h.Host == host && (best == nil || older(r, best.route)) {
				best = &entry{Host: h, route: r}
			}
		}
	}
	return best, best != nil
}

// Revision returns a revision as the new table has it.
func (e *Edit) Revision(name Name) (*Revision, bool) { return e.table.Revision(name) }

// Names returns the names of all routes and revisions in the new table.
func (e *Edit) Names() (routes, revisions []Name) { return e.table.Names() }

// Table returns the new table. The edit is over.
func (e *Edit) Table() *Table {
	t := e.table
	e.table = nil
	return t
}

// Names returns the names of all routes and revisions in the table.
func (t *Table) Names() (routes, revisions []Name) {
	if t == nil {
		return nil, nil
	}
	for n := range t.routes {
		routes = append(routes, n)
	}
	for n := range t.revisions {
		revisions = append(revisions, n)
	}
	return routes, revisions
}

func own[V any, K comparable](m *map[K]V, owned *bool) {
	if *owned {
		return
	}
	if *m = maps.Clone(*m); *m == nil {
		*m = map[K]V{}
	}
	*owned = true
}

func older(a, b *Route) bool {
	if !a.Created.Equal(b.Created) {
		return a.Created.Before(b.Created)
	}
	return a.Name.String() < b.Name.String()
}

// inherit hands the cursors of the old route's splits to the new one's.
func inherit(r, old *Route) {
	for tag, s := range r.Tags {
		s.continues(old.Tags[tag])
	}
	for _, h := range r.Hosts {
		for _, o := range old.Hosts {
			if h.Host == o.Host {
				h.Split.continues(o.Split)
				break
			}
		}
	}
}
