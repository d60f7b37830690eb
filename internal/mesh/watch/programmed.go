// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// Path is where Handler answers.
const Path = "/programmed"

// patience is how long a question waits for its answer; whoever asks may ask
// again.
const patience = 30 * time.Second

// Handler answers GET /programmed?namespace=&name=&resourceVersion=, or
// &generation=, as soon as the table holds that state of the Route, or one
// after it, and the revisions and certificates it names: 200 then, 504 if it
// takes too long. With &kind=DomainMapping it is asked about one of those.
func (w *Watch) Handler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		want, err := wanted(q.Get("generation"), q.Get("resourceVersion"))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		want.name = routing.Name{Namespace: q.Get("namespace"), Name: q.Get("name")}
		if q.Get("kind") == "DomainMapping" {
			want.name = routing.MappingOf(want.name)
		}
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		if _, err := w.Live.Wait(ctx, want.met); err != nil {
			http.Error(rw, "not programmed: "+want.name.String(), http.StatusGatewayTimeout)
		}
	})
}

// state is a state of a route.
type state struct {
	name       routing.Name
	generation int64
	version    uint64
}

func wanted(generation, version string) (s state, err error) {
	if version != "" {
		if s.version, err = strconv.ParseUint(version, 10, 64); err != nil {
			return s, fmt.Errorf("resourceVersion: %w", err)
		}
		return s, nil // which says more than a generation
	}
	if generation != "" {
		if s.generation, err = strconv.ParseInt(generation, 10, 64); err != nil {
			return s, fmt.Errorf("generation: %w", err)
		}
	}
	return s, nil
}

// met reports whether a table holds the state.
func (s state) met(t *routing.Table) bool {
	r, ok := t.Route(s.name)
	if !ok || r.Generation < s.generation || r.Version < s.version {
		return false
	}
	for _, h := range r.Hosts {
		if (h.Certificate != routing.Name{}) && !t.Proven(h.Certificate) {
			return false
		}
		for _, share := range h.Split.Shares() {
			if _, ok := t.Revision(share.Revision); !ok {
				return false
			}
		}
	}
	return true
}
