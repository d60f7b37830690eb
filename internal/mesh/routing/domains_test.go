// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"crypto/tls"
	"testing"
	"time"
)

// domained is a table with a route, and a mapping that leads to it.
func domained(m Host) *Table {
	e := (*Table)(nil).Edit()
	e.SetRevision(&Revision{Name: name("web-1")})
	r := route("web", 1, "web.default.svc.cluster.local")
	r.Hosts[0].Visibility = ClusterLocal
	e.SetRoute(r)
	e.SetRoute(&Route{Name: MappingOf(name("own.example.org")), Created: time.Unix(2, 0), Hosts: []Host{m}})
	e.SetOptions(Options{ClusterDomain: "cluster.local"})
	return e.Table()
}

func TestMappingPublishesWhatItLeadsTo(t *testing.T) {
	table := domained(Host{Host: "own.example.org", Alias: "web.default.svc.cluster.local"})
	target, why := table.Match(Query{Host: "own.example.org"})
	if why != Matched || target.Revision.Name != name("web-1") || target.Route != name("web") {
		t.Errorf("%+v, %v", target, why)
	}
	if _, why := table.Match(Query{Host: "web.default.svc.cluster.local"}); why != NotVisible {
		t.Errorf("its inner name from outside: %v", why)
	}
	table = domained(Host{Host: "own.example.org", Alias: "web-1.default.svc.cluster.local"})
	if target, why := table.Match(Query{Host: "own.example.org"}); why != Matched || target.Revision.Name != name("web-1") {
		t.Errorf("a revision's own name: %+v, %v", target, why)
	}
	table = domained(Host{Host: "own.example.org", Alias: "none.default.svc.cluster.local"})
	if _, why := table.Match(Query{Host: "own.example.org"}); why != UnknownHost {
		t.Errorf("to nowhere: %v", why)
	}
}

func TestMappingsCannotLeadInCircles(t *testing.T) {
	table := domained(Host{Host: "own.example.org", Alias: "own.example.org"})
	if _, why := table.Match(Query{Host: "own.example.org"}); why != UnknownHost {
		t.Errorf("to itself: %v", why)
	}
}

func TestOnlyPlainRequestsFromOutsideAreRedirected(t *testing.T) {
	table := domained(Host{Host: "own.example.org", Alias: "web.default.svc.cluster.local", Redirect: true})
	for q, want := range map[Query]Refusal{
		{Host: "own.example.org"}:                 Insecure,
		{Host: "own.example.org", Secure: true}:   Matched,
		{Host: "own.example.org", Internal: true}: Matched,
	} {
		if _, why := table.Match(q); why != want {
			t.Errorf("%+v: %v, want %v", q, why, want)
		}
	}
}

func TestCertificateOfAHost(t *testing.T) {
	mine := Name{"default", "mine"}
	table := domained(Host{Host: "own.example.org", Alias: "web.default.svc.cluster.local", Certificate: mine})
	if table.Certificate("own.example.org") != nil || table.Proven(mine) {
		t.Error("a certificate that is not there")
	}
	pair := &tls.Certificate{}
	e := table.Edit()
	e.SetCertificate(&Certificate{Name: mine, TLS: pair})
	next := e.Table()
	if next.Certificate("own.example.org") != pair || !next.Proven(mine) {
		t.Error("the certificate is not found")
	}
	if next.Certificate("web.default.svc.cluster.local") != nil || next.Certificate("") != nil || table.Proven(mine) {
		t.Error("a certificate for another host, or in a table before it")
	}
	e = next.Edit()
	e.DeleteCertificate(mine)
	if e.Table().Certificate("own.example.org") != nil || next.Certificate("own.example.org") == nil {
		t.Error("deleted in the wrong table")
	}
}
