// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// remembered bounds the answers in memory, of a few hundred bytes each.
	remembered = 2048
	// Answers are believed for as long as they say, but no longer than
	// longest; that a name does not exist for no longer than longestNo.
	longest   = 5 * time.Minute
	longestNo = 30 * time.Second
)

// A memoryKey is what an answer depends on.
type memoryKey struct {
	name     string
	kind     uint16
	signed   bool
	checking bool
}

func keyOf(q *dns.Msg) memoryKey {
	opt := q.IsEdns0()
	return memoryKey{strings.ToLower(q.Question[0].Name), q.Question[0].Qtype, opt != nil && opt.Do(), q.CheckingDisabled}
}

type memorized struct {
	msg        *dns.Msg
	from, till time.Time
}

// memory remembers answers of others.
type memory struct {
	mu      sync.Mutex
	answers map[memoryKey]memorized
}

func newMemory() *memory { return &memory{answers: map[memoryKey]memorized{}} }

func (m *memory) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.answers)
}

// get returns a copy of what is remembered, with the time that is left.
func (m *memory) get(key memoryKey, now time.Time) *dns.Msg {
	m.mu.Lock()
	defer m.mu.Unlock()
	have, ok := m.answers[key]
	if !ok || !now.Before(have.till) {
		return nil
	}
	msg := have.msg.Copy()
	passed := uint32(now.Sub(have.from) / time.Second)
	eachRecord(msg, func(h *dns.RR_Header) { h.Ttl -= min(passed, h.Ttl) })
	return msg
}

func (m *memory) put(key memoryKey, msg *dns.Msg, now time.Time) {
	life := lifeOf(msg)
	if life <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.answers) >= remembered {
		m.forgetSome(now)
	}
	m.answers[key] = memorized{msg.Copy(), now, now.Add(life)}
}

// forgetSome makes room: what is over, else any.
func (m *memory) forgetSome(now time.Time) {
	for key, have := range m.answers {
		if !now.Before(have.till) {
			delete(m.answers, key)
		}
	}
	for key := range m.answers {
		if len(m.answers) < remembered {
			return
		}
		delete(m.answers, key)
	}
}

// lifeOf is how long an answer may be remembered; zero: not at all.
func lifeOf(msg *dns.Msg) time.Duration {
	limit := longest
	switch {
	case msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
		return 0
	case msg.Rcode == dns.RcodeNameError || len(msg.Answer) == 0:
		minimum, said := noFor(msg)
		if !said {
			return 0
		}
		limit = min(longestNo, minimum)
	}
	eachRecord(msg, func(h *dns.RR_Header) { limit = min(limit, time.Duration(h.Ttl)*time.Second) })
	return limit
}

// noFor is how long it may be believed that there is no such record.
func noFor(msg *dns.Msg) (time.Duration, bool) {
	for _, rr := range msg.Ns {
		if s, ok := rr.(*dns.SOA); ok {
			return time.Duration(s.Minttl) * time.Second, true
		}
	}
	return 0, false
}

// eachRecord visits the records that have a time to live.
func eachRecord(msg *dns.Msg, visit func(*dns.RR_Header)) {
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				visit(h)
			}
		}
	}
}
