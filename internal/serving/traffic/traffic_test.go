// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"reflect"
	"testing"
	"time"
)

func world() Known {
	configurations := map[string]Configuration{
		"web": {Ready, "web-2"}, "new": {Waiting, ""}, "bad": {Failed, ""}, "stale": {Failed, "stale-1"}, "ahead": {Ready, "ahead-1"},
	}
	revisions := map[string]Revision{
		"web-1": {Ready, "web", "web"}, "web-2": {Ready, "web", "web"}, "web-3": {Failed, "web", "web"},
		"stale-1": {Ready, "", "stale"}, "ahead-1": {Waiting, "", "ahead"}, "other-1": {Ready, "other", "other"},
	}
	return Known{
		func(n string) (Configuration, bool) { c, ok := configurations[n]; return c, ok },
		func(n string) (Revision, bool) { r, ok := revisions[n]; return r, ok },
	}
}

func TestAssign(t *testing.T) {
	for name, tt := range map[string]struct {
		service string
		targets []Target
		shares  []Share
		fault   *Fault
	}{
		"latest": {"web", []Target{{Configuration: "web", Latest: true, Percent: 100}}, []Share{{"", "web-2", "web", true, 100}}, nil},
		"pinned and tagged": {"web", []Target{{Revision: "web-1", Percent: 90}, {Tag: "next", Configuration: "web", Latest: true, Percent: 10}},
			[]Share{{"", "web-1", "web", false, 90}, {"next", "web-2", "web", true, 10}}, nil},
		"twice the same":     {"web", []Target{{Revision: "web-1", Percent: 40}, {Revision: "web-1", Percent: 60}}, []Share{{"", "web-1", "web", false, 100}}, nil},
		"latest of a failed": {"", []Target{{Configuration: "stale", Latest: true, Percent: 100}}, []Share{{"", "stale-1", "stale", true, 100}}, nil},
		"not ready yet": {"", []Target{{Configuration: "new", Latest: true, Percent: 100}}, nil,
			&Fault{RevisionMissing, `Configuration "new" is waiting for a Revision to become ready.`, false}},
		"never ready": {"", []Target{{Configuration: "bad", Latest: true, Percent: 100}}, nil,
			&Fault{RevisionMissing, `Configuration "bad" does not have any ready Revision.`, true}},
		"no configuration": {"", []Target{{Configuration: "none", Latest: true, Percent: 100}}, nil,
			&Fault{ConfigurationMissing, `Configuration "none" referenced in traffic not found.`, true}},
		"no revision": {"", []Target{{Revision: "none", Percent: 100}}, nil,
			&Fault{RevisionMissing, `Revision "none" referenced in traffic not found.`, true}},
		"failed revision": {"", []Target{{Revision: "web-3", Percent: 100}}, nil,
			&Fault{RevisionMissing, `Revision "web-3" failed to become ready.`, true}},
		"configuration ahead of its revision": {"", []Target{{Configuration: "ahead", Latest: true, Percent: 100}}, nil,
			&Fault{RevisionMissing, `Revision "ahead-1" is not yet ready.`, false}},
		"another's revision": {"web", []Target{{Revision: "other-1", Percent: 100}}, nil,
			&Fault{RevisionNotOwned, `Revision "other-1" belongs to Service "other", not Service "web".`, true}},
		"nobody's revision": {"web", []Target{{Revision: "stale-1", Percent: 100}}, nil,
			&Fault{RevisionNotOwned, `Revision "stale-1" does not belong to Service "web".`, true}},
		"failure outweighs waiting": {"", []Target{{Revision: "none", Percent: 50}, {Configuration: "new", Latest: true, Percent: 50}}, nil,
			&Fault{RevisionMissing, `Revision "none" referenced in traffic not found.`, true}},
	} {
		t.Run(name, func(t *testing.T) {
			shares, fault := Assign(tt.service, tt.targets, world())
			if !reflect.DeepEqual(shares, tt.shares) || !reflect.DeepEqual(fault, tt.fault) {
				t.Errorf("got %v, %+v\nwant %v, %+v", shares, fault, tt.shares, tt.fault)
			}
		})
	}
}

var start = time.Unix(1000, 0)

func percents(shares []Share) map[string]int64 {
	m := map[string]int64{}
	for _, s := range shares {
		m[s.Revision] += s.Percent
	}
	return m
}

// A rollout over ten seconds begins with one percent, moves in equal steps, always sums up
// to its percentage, and ends with all at the newest revision.
func TestRoll(t *testing.T) {
	latest := func(rev string) []Share { return []Share{{"", rev, "web", true, 100}} }
	shares, kept, wake := Roll(latest("web-1"), nil, 10*time.Second, true, start)
	if len(shares) != 1 || !wake.IsZero() {
		t.Fatalf("first revision: %v, %v", shares, wake)
	}
	now := start
	shares, kept, wake = Roll(latest("web-2"), kept, 10*time.Second, true, now)
	if p := percents(shares); p["web-1"] != 99 || p["web-2"] != 1 || !wake.IsZero() {
		t.Fatalf("begin: %v, %v", p, wake)
	}
	if _, same, _ := Roll(latest("web-2"), kept, 10*time.Second, false, now); !reflect.DeepEqual(same, kept) {
		t.Fatalf("not served yet, but moved: %v", same)
	}
	last, steps := int64(1), 0
	for {
		shares, kept, wake = Roll(latest("web-2"), kept, 10*time.Second, true, now)
		p := percents(shares)
		if p["web-1"]+p["web-2"] != 100 || p["web-2"] < last {
			t.Fatalf("step %d: %v", steps, p)
		}
		last = p["web-2"]
		if wake.IsZero() {
			break
		}
		now = wake
		if steps++; steps > 100 {
			t.Fatal("does not end")
		}
	}
	if took := now.Sub(start); last != 100 || took < 8*time.Second || took > 12*time.Second {
		t.Errorf("ended with %d%% after %v", last, took)
	}
}

func TestRollChanges(t *testing.T) {
	before := []Rollout{{Configuration: "web", Parts: []Part{{"web-1", 60}, {"web-2", 40}}, Started: start, Next: start.Add(time.Minute), Every: time.Minute, Step: 10}}
	share := func(rev string, percent int64) []Share { return []Share{{"", rev, "web", true, percent}} }
	for name, tt := range map[string]struct {
		shares []Share
		over   time.Duration
		want   map[string]int64
	}{
		"no time to take":          {share("web-2", 100), 0, map[string]int64{"web-2": 100}},
		"less for all":             {share("web-2", 50), time.Minute, map[string]int64{"web-1": 10, "web-2": 40}},
		"a third revision":         {share("web-3", 100), time.Minute, map[string]int64{"web-1": 60, "web-2": 39, "web-3": 1}},
		"back to the first":        {share("web-1", 100), time.Minute, map[string]int64{"web-2": 39, "web-1": 61}},
		"pinned targets stay":      {[]Share{{"", "web-1", "web", false, 100}}, time.Minute, map[string]int64{"web-1": 100}},
		"one percent is not split": {share("web-3", 1), time.Minute, map[string]int64{"web-3": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			shares, _, _ := Roll(tt.shares, before, tt.over, true, start.Add(time.Second))
			if p := percents(shares); !reflect.DeepEqual(p, tt.want) {
				t.Errorf("got %v, want %v", p, tt.want)
			}
		})
	}
}
