// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func name(n string) Name { return Name{"default", n} }

func route(n string, created int, hosts ...string) *Route {
	r := &Route{Name: name(n), Created: time.Unix(int64(created), 0)}
	for _, h := range hosts {
		r.Hosts = append(r.Hosts, Host{Host: h, Split: NewSplit([]Share{{name(n + "-1"), 100}})})
	}
	return r
}

func TestSplitIsExact(t *testing.T) {
	for _, percents := range [][]int{{100}, {50, 50}, {1, 99}, {90, 10}, {33, 33, 34}, {0, 100}, {20, 20, 20, 20, 20}, {97, 1, 1, 1}} {
		t.Run(fmt.Sprint(percents), func(t *testing.T) {
			var shares []Share
			for i, p := range percents {
				shares = append(shares, Share{name(fmt.Sprint(i)), p})
			}
			s := NewSplit(shares)
			// Any hundred in a row are exact, wherever they begin.
			for range 7 {
				s.Next()
			}
			got := map[Name]int{}
			for range 300 {
				n, ok := s.Next()
				if !ok {
					t.Fatal("no choice")
				}
				got[n]++
			}
			for i, p := range percents {
				if got[name(fmt.Sprint(i))] != 3*p {
					t.Errorf("revision %d got %d of 300, want %d", i, got[name(fmt.Sprint(i))], 3*p)
				}
			}
		})
	}
	if _, ok := NewSplit(nil).Next(); ok {
		t.Error("an empty split has chosen")
	}
}

func TestSplitIsSpread(t *testing.T) {
	s := NewSplit([]Share{{name("a"), 90}, {name("b"), 10}})
	last := -1
	for i := range 100 {
		if n, _ := s.Next(); n == name("b") {
			if last >= 0 && i-last != 10 {
				t.Errorf("b came after %d requests, want each tenth", i-last)
			}
			last = i
		}
	}
}

func TestSplitGoesOnAcrossTables(t *testing.T) {
	shares := []Share{{name("a"), 50}, {name("b"), 50}}
	table := (*Table)(nil)
	got := map[Name]int{}
	for i := range 100 {
		e := table.Edit()
		r := &Route{Name: name("r"), Hosts: []Host{{Host: "h", Split: NewSplit(shares)}}}
		e.SetRoute(r)
		e.SetRevision(&Revision{Name: name("a")})
		e.SetRevision(&Revision{Name: name("b")})
		table = e.Table()
		target, refusal := table.Match(Query{Host: "h"})
		if refusal != Matched {
			t.Fatal(i, refusal)
		}
		got[target.Revision.Name]++
	}
	if got[name("a")] != 50 || got[name("b")] != 50 {
		t.Errorf("a table for each request: %v, want 50 each", got)
	}
}

func TestMatch(t *testing.T) {
	e := (*Table)(nil).Edit()
	e.SetOptions(Options{TagHeader: true, ClusterDomain: "cluster.local"})
	main := NewSplit([]Share{{name("a"), 100}})
	blue := NewSplit([]Share{{name("b"), 100}})
	e.SetRoute(&Route{
		Name: name("r"),
		Hosts: []Host{
			{Host: "r.example", Split: main},
			{Host: "r.default.svc.cluster.local", Visibility: ClusterLocal, Split: main},
			{Host: "blue-r.example", Tag: "blue", Split: blue},
		},
		Tags: map[string]*Split{"": main, "blue": blue},
	})
	e.SetRoute(&Route{Name: name("idle"), Hosts: []Host{{Host: "idle.example", Split: NewSplit(nil)}}})
	e.SetRoute(&Route{Name: name("early"), Hosts: []Host{{Host: "early.example", Split: NewSplit([]Share{{name("c"), 100}})}}})
	e.SetRevision(&Revision{Name: name("a")})
	e.SetRevision(&Revision{Name: name("b")})
	table := e.Table()
	for _, c := range []struct {
		q        Query
		refusal  Refusal
		revision string
		tag      string
	}{
		{Query{Host: "r.example"}, Matched, "a", ""},
		{Query{Host: "r.example", Internal: true}, Matched, "a", ""},
		{Query{Host: "r.example", Tag: "blue"}, Matched, "b", "blue"},
		{Query{Host: "r.example", Tag: "green"}, Matched, "a", ""},
		{Query{Host: "blue-r.example"}, Matched, "b", "blue"},
		{Query{Host: "r.default.svc.cluster.local"}, NotVisible, "", ""},
		{Query{Host: "r.default.svc.cluster.local", Internal: true}, Matched, "a", ""},
		{Query{Host: "a.default", Internal: true}, Matched, "a", ""},
		{Query{Host: "a.default.svc", Internal: true}, Matched, "a", ""},
		{Query{Host: "a.default.svc.cluster.local", Internal: true}, Matched, "a", ""},
		{Query{Host: "a.default.svc.cluster.local"}, NotVisible, "", ""},
		{Query{Host: "a.default.svc.elsewhere", Internal: true}, UnknownHost, "", ""},
		{Query{Host: "a.default.pod", Internal: true}, UnknownHost, "", ""},
		{Query{Host: "a.other.svc", Internal: true}, UnknownHost, "", ""},
		{Query{Host: "nobody.example"}, UnknownHost, "", ""},
		{Query{Host: ""}, UnknownHost, "", ""},
		{Query{Host: "idle.example"}, NoTraffic, "", ""},
		{Query{Host: "early.example"}, UnknownRevision, "", ""},
	} {
		target, refusal := table.Match(c.q)
		if refusal != c.refusal || refusal == Matched && (target.Revision.Name != name(c.revision) || target.Tag != c.tag) {
			t.Errorf("%+v: %+v, %v", c.q, target, refusal)
		}
	}
}

func TestOldestRouteKeepsItsHost(t *testing.T) {
	holder := func(table *Table) string {
		if e, ok := table.hosts["h"]; ok {
			return e.route.Name.Name
		}
		return ""
	}
	step := func(table *Table, do func(*Edit)) *Table {
		e := table.Edit()
		do(e)
		return e.Table()
	}
	table := step(nil, func(e *Edit) { e.SetRoute(route("young", 3, "h", "y")) })
	table = step(table, func(e *Edit) { e.SetRoute(route("old", 1, "h")) })
	if holder(table) != "old" {
		t.Errorf("%q has the host, want old", holder(table))
	}
	table = step(table, func(e *Edit) { e.SetRoute(route("young", 3, "h", "y")) })
	if holder(table) != "old" {
		t.Errorf("%q has the host after an update, want old", holder(table))
	}
	before := table
	table = step(table, func(e *Edit) { e.DeleteRoute(name("old")) })
	if holder(table) != "young" || holder(before) != "old" {
		t.Errorf("%q has the host, want young; before: %q", holder(table), holder(before))
	}
	table = step(table, func(e *Edit) { e.SetRoute(route("young", 3, "y")) })
	if holder(table) != "" {
		t.Errorf("%q has a host nobody claims", holder(table))
	}
}

func TestLive(t *testing.T) {
	var l Live
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() {
		_, err := l.Wait(ctx, func(t *Table) bool { _, ok := t.Route(name("b")); return ok })
		got <- err
	}()
	for _, n := range []string{"a", "b"} {
		e := l.Load().Edit()
		e.SetRoute(route(n, 1, n))
		l.Swap(e.Table())
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	cancel()
	if _, err := l.Wait(ctx, func(*Table) bool { return false }); err == nil {
		t.Error("waited beyond its context")
	}
}

func TestEndpoints(t *testing.T) {
	var e Endpoints
	pod := func(uid string, ready, gone bool) Endpoint {
		return Endpoint{Revision: name("r"), UID: uid, IP: netip.MustParseAddr("10.0.0.1"), Ready: ready, Gone: gone}
	}
	for i, c := range []struct {
		pod     Endpoint
		want    int
		changed bool
	}{
		{pod("b", true, false), 1, true},
		{pod("b", true, false), 1, false},
		{pod("a", false, false), 1, false},
		{pod("a", true, false), 2, true},
		{pod("b", true, true), 1, true},
		{pod("c", false, true), 1, false},
		{pod("a", false, false), 0, true},
	} {
		ready, changed := e.Apply(c.pod)
		if len(ready) != c.want || changed != c.changed || len(e.Ready(name("r"))) != c.want {
			t.Errorf("step %d: %v, %v", i, ready, changed)
		}
	}
	if len(e.pods) != 0 {
		t.Errorf("kept %v", e.pods)
	}
}

func BenchmarkMatch(b *testing.B) {
	table := thousand()
	b.ReportAllocs()
	for b.Loop() {
		if _, refusal := table.Match(Query{Host: "r500.default.example.com"}); refusal != Matched {
			b.Fatal(refusal)
		}
	}
}

// BenchmarkEdit is the cost of one change among a thousand routes.
func BenchmarkEdit(b *testing.B) {
	table := thousand()
	for b.Loop() {
		e := table.Edit()
		e.SetRoute(thousandth(500))
		table = e.Table()
	}
}

func thousandth(i int) *Route {
	n := fmt.Sprintf("r%d", i)
	return route(n, i, n+".default.example.com", n+".default", n+".default.svc", n+".default.svc.cluster.local")
}

func thousand() *Table {
	e := (*Table)(nil).Edit()
	for i := range 1000 {
		e.SetRoute(thousandth(i))
		e.SetRevision(&Revision{Name: name(fmt.Sprintf("r%d-1", i))})
	}
	return e.Table()
}
