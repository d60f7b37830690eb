// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"sync"
	"testing"
	"time"
)

func TestCounts(t *testing.T) {
	e := (*Table)(nil).Edit()
	e.SetRevision(&Revision{Name: name("a")})
	table := e.Table()
	var all sync.WaitGroup
	const adders, each = 10, 1000
	for i := range adders {
		all.Go(func() {
			for n := range each {
				// The table is replaced meanwhile, and the counts go on.
				r, _ := table.Revision(name("a"))
				r.Counts.Add(uint32(i), Outcome{Method: MethodOf([]byte("GET")), Status: 200 + n%2, Took: time.Duration(n) * time.Millisecond, In: 7, Out: 1 << 20})
			}
		})
	}
	e = table.Edit()
	e.SetRevision(&Revision{Name: name("a"), Port: 1})
	later := e.Table()
	all.Wait()
	r, _ := later.Revision(name("a"))
	sums := r.Counts.Sums()
	if len(sums) != 2 || sums[0].Status != 200 || sums[1].Status != 201 {
		t.Fatalf("%+v", sums)
	}
	for _, s := range sums {
		if s.Count() != adders*each/2 || s.In.Bytes != 7*adders*each/2 || s.Out.Bytes != adders*each/2<<20 || s.Method.String() != "GET" {
			t.Errorf("%+v", s)
		}
		if s.In.Buckets[2] != adders*each/2 || s.Out.Buckets[len(SizeBounds)] != adders*each/2 {
			t.Errorf("%+v %+v", s.In, s.Out)
		}
	}
	if sums[0].Took >= sums[1].Took {
		t.Error(sums[0].Took, sums[1].Took)
	}
}

func TestNothingIsAllocatedForACount(t *testing.T) {
	var c Counts
	o := Outcome{Method: MethodOf("PUT"), Status: 404, Took: time.Second, In: 3, Out: 4}
	if n := testing.AllocsPerRun(1000, func() { c.Add(3, o) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCount(b *testing.B) {
	var c Counts
	o := Outcome{Method: MethodOf("GET"), Status: 200, Took: 300 * time.Microsecond, Out: 100}
	b.ReportAllocs()
	for b.Loop() {
		c.Add(3, o)
	}
}
