// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// queryTime bounds a query, tryTime what one resolver may take of it: a
	// client asks again after five seconds.
	queryTime = 4500 * time.Millisecond
	tryTime   = 2 * time.Second
	// lookAgain bounds how often the resolvers' file is looked at.
	lookAgain = time.Second
)

var errNoResolver = errors.New("this machine names no resolver that could be asked")

// A forwarder asks the resolvers of this machine.
type forwarder struct {
	file   string
	own    []netip.Addr
	memory *memory

	mu      sync.Mutex
	looked  time.Time
	changed time.Time
	size    int64
	servers []string
}

func newForwarder(file string, own []netip.Addr) *forwarder {
	return &forwarder{file: file, own: own, memory: newMemory()}
}

// ask finds the answer to a query of one question.
func (f *forwarder) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	key := keyOf(q)
	if found := f.memory.get(key, time.Now()); found != nil {
		return found, nil
	}
	servers, err := f.resolvers(time.Now())
	if err != nil {
		return nil, err
	}
	out := outgoing(q)
	failed := errNoResolver
	for _, server := range servers {
		found, err := exchange(ctx, out, server)
		if err != nil {
			failed = err
			continue
		}
		if found.Rcode == dns.RcodeServerFailure || found.Rcode == dns.RcodeRefused {
			failed = fmt.Errorf("%s answers %s", server, dns.RcodeToString[found.Rcode])
			continue
		}
		f.memory.put(key, found, time.Now())
		return found, nil
	}
	return nil, failed
}

// outgoing is the query as we ask it: with a number of our own, and room for
// answers that do not fit into the oldest kind of datagram.
func outgoing(q *dns.Msg) *dns.Msg {
	out := new(dns.Msg)
	out.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	out.CheckingDisabled = q.CheckingDisabled
	opt := q.IsEdns0()
	out.SetEdns0(maxDatagram, opt != nil && opt.Do())
	return out
}

// exchange asks one resolver, by TCP if the answer is too long for a datagram.
func exchange(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network, Timeout: tryTime, UDPSize: maxDatagram}
		q.Id = dns.Id()
		found, _, err := client.ExchangeContext(ctx, q, server)
		if err != nil {
			return nil, fmt.Errorf("asking %s: %w", server, err)
		}
		if len(found.Question) != 1 || !strings.EqualFold(found.Question[0].Name, q.Question[0].Name) || found.Question[0].Qtype != q.Question[0].Qtype {
			return nil, fmt.Errorf("%s answers another question", server)
		}
		if !found.Truncated {
			return found, nil
		}
	}
	return nil, fmt.Errorf("%s shortens its answer even by TCP", server)
}

// resolvers are the addresses to ask, as the file says now.
func (f *forwarder) resolvers(now time.Time) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.looked) < lookAgain {
		return f.servers, nil
	}
	info, err := os.Stat(f.file)
	if err != nil {
		return f.servers, keep(f.servers, err)
	}
	f.looked = now
	if info.ModTime().Equal(f.changed) && info.Size() == f.size {
		return f.servers, nil
	}
	text, err := os.ReadFile(f.file)
	if err != nil {
		return f.servers, keep(f.servers, err)
	}
	f.changed, f.size = info.ModTime(), info.Size()
	f.servers = parseResolvers(string(text), f.own)
	f.memory.clear() // other resolvers may know other names
	return f.servers, nil
}

// keep hides an error as long as there are resolvers from before.
func keep(servers []string, err error) error {
	if len(servers) > 0 {
		return nil
	}
	return fmt.Errorf("finding this machine's resolvers: %w", err)
}

// parseResolvers reads the nameserver lines, without those that lead back to
// us. A stub on a loopback address, as systemd-resolved is, can be asked from
// here: we are in the machine's own network.
func parseResolvers(text string, own []netip.Addr) []string {
	var servers []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(words[1])
		if err != nil || slices.Contains(own, addr.Unmap()) {
			continue
		}
		servers = append(servers, net.JoinHostPort(addr.String(), "53"))
	}
	return servers
}
