// SPDX-License-Identifier: Apache-2.0

package load

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

var web = Revision{"default", "web-00001"}

func full() Batch {
	return Batch{
		Span:    time.Second,
		Samples: []Sample{{Revision: web, Concurrency: 1.5, Requests: 30, InFlight: 2, Held: 1, Ready: 3}},
		Pokes:   []Poke{{Revision: web, InFlight: 7, Waited: PatientFor}},
	}
}

func TestRoundTrip(t *testing.T) {
	for name, b := range map[string]Batch{
		"full":  full(),
		"alive": {Span: time.Second},
		"poke":  {Pokes: []Poke{{Revision: web, InFlight: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := Encode(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, b) {
				t.Errorf("got %+v, want %+v", got, b)
			}
		})
	}
}

// TestWire holds the bytes: an older data plane speaks to a newer autoscaler
// while the platform is upgraded.
func TestWire(t *testing.T) {
	const want = `{"v":1,"t":1000000000,"s":[{"ns":"default","n":"web-00001","c":1.5,"r":30,"f":2,"h":1,"p":3}],"p":[{"ns":"default","n":"web-00001","f":7,"w":100000000}]}`
	got, err := Encode(full())
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

func TestRefused(t *testing.T) {
	for name, data := range map[string]string{
		"empty":            ``,
		"no version":       `{"t":1}`,
		"future":           `{"v":2}`,
		"trailing":         `{"v":1}{"v":1}`,
		"negative span":    `{"v":1,"t":-1}`,
		"long span":        `{"v":1,"t":9000000000000000}`,
		"no namespace":     `{"v":1,"s":[{"n":"a"}]}`,
		"no name":          `{"v":1,"p":[{"ns":"a","f":1}]}`,
		"negative":         `{"v":1,"s":[{"ns":"a","n":"a","c":-1}]}`,
		"huge":             `{"v":1,"s":[{"ns":"a","n":"a","c":1e300}]}`,
		"negative held":    `{"v":1,"s":[{"ns":"a","n":"a","h":-1}]}`,
		"negative waiting": `{"v":1,"p":[{"ns":"a","n":"a","w":-1}]}`,
		"long name":        fmt.Sprintf(`{"v":1,"p":[{"ns":"a","n":%q}]}`, strings.Repeat("x", 254)),
	} {
		t.Run(name, func(t *testing.T) {
			if b, err := Decode([]byte(data)); err == nil {
				t.Errorf("decoded %+v", b)
			}
		})
	}
	if _, err := Decode(make([]byte, MaxBytes+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("err = %v, want ErrTooLarge", err)
	}
	if _, err := Encode(Batch{Samples: []Sample{{Revision: web, Concurrency: math.NaN()}}}); err == nil {
		t.Error("encoded NaN")
	}
}

func FuzzDecode(f *testing.F) {
	data, err := Encode(full())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`{"v":1,"s":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Decode(data)
		if err != nil {
			return
		}
		// What is taken can be sent on, and means the same. (Names that are
		// not UTF-8 are mended once and stay so.)
		again, err := Encode(b)
		if err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		if err != nil {
			return
		}
		if c, err := Decode(again); err != nil || len(c.Samples) != len(b.Samples) || len(c.Pokes) != len(b.Pokes) || c.Span != b.Span {
			t.Fatalf("%+v became %+v, %v", b, c, err)
		}
	})
}

func BenchmarkPoke(b *testing.B) {
	batch := Batch{Pokes: []Poke{{Revision: web, InFlight: 1}}}
	for b.Loop() {
		data, _ := Encode(batch)
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}
