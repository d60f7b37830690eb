// SPDX-License-Identifier: Apache-2.0

// Package dns answers the names of services and pods.
//
// Names under the cluster domain are answered from the API as it is now,
// without a table of their own. Names that the platform itself serves lead to
// its gateway. All others are asked of the resolvers of this machine, with a
// small bounded memory. A name of the cluster is never asked of anybody else.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/sonagi/sonagi/internal/run"
)

// Options of a Server.
type Options struct {
	Informers informers.SharedInformerFactory // of Services and EndpointSlices; may be shared with others
	Listen    []string                        // "10.42.0.1:53"; each for UDP and TCP
	Domain    string                          // "cluster.local"
	// Networks are the pods' and services': their addresses' names are ours.
	Networks []netip.Prefix
	// Host says which address a name leads to that the platform serves; it
	// gets the name in lower case without the dot at the end. May be nil.
	Host func(name string) (netip.Addr, bool)
	// ResolvConf names this machine's resolvers; "/etc/resolv.conf".
	ResolvConf string
	// Own are addresses that lead to this server and that are therefore no
	// resolvers to ask, besides those of Listen.
	Own []netip.Addr
	Log *slog.Logger
}

const (
	// ttl is how long others may remember our answers: a pod that starts from
	// zero must not be looked for at the address of its predecessor for long.
	ttl = 5
	// maxQueries bounds what is worked on at once, maxConns the TCP clients.
	maxQueries = 512
	maxConns   = 256
	// maxDatagram is what passes any path in one piece.
	maxDatagram = 1232
	// idle is how long a TCP client may say nothing.
	idle = 10 * time.Second
)

// A Server answers queries.
type Server struct {
	options Options
	zone    *zone
	forward *forwarder
	slots   chan struct{}
	synced  []cache.InformerSynced
	ready   chan struct{}
}

// New prepares a server; it listens when its task runs.
func New(o Options) (*Server, error) {
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	services, parts := o.Informers.Core().V1().Services().Informer(), o.Informers.Discovery().V1().EndpointSlices().Informer()
	for _, informer := range []cache.SharedIndexInformer{services, parts} {
		// Fails when another has set one already, which does the same.
		_ = informer.SetTransform(slim)
	}
	d := directory{services: services.GetIndexer(), slices: parts.GetIndexer()}
	if err := errors.Join(services.AddIndexers(serviceIndexers()), parts.AddIndexers(sliceIndexers())); err != nil {
		return nil, fmt.Errorf("indexing services: %w", err)
	}
	own := append([]netip.Addr{}, o.Own...)
	for _, at := range o.Listen {
		addr, err := netip.ParseAddrPort(at)
		if err != nil {
			return nil, fmt.Errorf("where to listen: %w", err)
		}
		own = append(own, addr.Addr())
	}
	return &Server{
		options: o,
		zone:    &zone{domain: dns.Fqdn(strings.ToLower(o.Domain)), directory: d, networks: o.Networks},
		forward: newForwarder(o.ResolvConf, own),
		slots:   make(chan struct{}, maxQueries),
		synced:  []cache.InformerSynced{services.HasSynced, parts.HasSynced},
		ready:   make(chan struct{}),
	}, nil
}

// slim drops what nobody here reads and what is most of many objects.
func slim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// Task is the server's work. It is ready when it knows all names and listens.
func (s *Server) Task() run.Task {
	return run.Task{Name: "dns", Run: s.run, Ready: func(ctx context.Context) error {
		select {
		case <-s.ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

func (s *Server) run(ctx context.Context) error {
	s.options.Informers.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return nil // ctx has ended
	}
	servers, err := s.listen(ctx)
	if err != nil {
		return err
	}
	ended, started := make(chan error, len(servers)), make(chan struct{}, len(servers))
	var tasks sync.WaitGroup
	for _, server := range servers {
		server.NotifyStartedFunc = func() { started <- struct{}{} }
		tasks.Go(func() { ended <- server.ActivateAndServe() })
	}
	for range servers {
		select { // either comes: one that did not start cannot be stopped
		case <-started:
		case err = <-ended:
		}
	}
	if err == nil {
		close(s.ready)
		select {
		case err = <-ended:
		case <-ctx.Done():
		}
	}
	s.shutdown(servers)
	tasks.Wait()
	return err
}

// shutdown lets answers under way be sent.
func (s *Server) shutdown(servers []*dns.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), queryTime)
	defer cancel()
	for _, server := range servers {
		if err := server.ShutdownContext(ctx); err != nil {
			s.options.Log.Debug("stopping to answer DNS", "err", err)
		}
	}
}

// listen opens all sockets, or none.
func (s *Server) listen(ctx context.Context) (servers []*dns.Server, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, server := range servers {
			if server.PacketConn != nil {
				server.PacketConn.Close()
			} else {
				server.Listener.Close()
			}
		}
	}()
	var config net.ListenConfig
	for _, at := range s.options.Listen {
		packets, err := config.ListenPacket(ctx, "udp", at)
		if err != nil {
			return servers, fmt.Errorf("listening for DNS: %w", err)
		}
		servers = append(servers, s.server(&dns.Server{PacketConn: packets, UDPSize: maxDatagram}))
		conns, err := config.Listen(ctx, "tcp", at)
		if err != nil {
			return servers, fmt.Errorf("listening for DNS: %w", err)
		}
		servers = append(servers, s.server(&dns.Server{Listener: netutil.LimitListener(conns, maxConns)}))
	}
	return servers, nil
}

func (s *Server) server(d *dns.Server) *dns.Server {
	d.Handler = dns.HandlerFunc(s.handle)
	d.ReadTimeout, d.WriteTimeout = idle, idle
	d.IdleTimeout = func() time.Duration { return idle }
	return d
}

// handle answers one query.
func (s *Server) handle(w dns.ResponseWriter, q *dns.Msg) {
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.write(w, q, refusal(q, dns.RcodeServerFailure), udp)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTime)
	defer cancel()
	s.write(w, q, s.answer(ctx, q), udp)
}

func (s *Server) write(w dns.ResponseWriter, q, r *dns.Msg, udp bool) {
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		if udp {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxDatagram)
		}
		setEDNS(r, opt)
	}
	r.Compress = true
	r.Truncate(size)
	if err := w.WriteMsg(r); err != nil {
		s.options.Log.Debug("answering a DNS query", "client", w.RemoteAddr(), "err", err)
	}
}

// setEDNS replaces whatever extension record the answer has by our own.
func setEDNS(r *dns.Msg, asked *dns.OPT) {
	kept := r.Extra[:0]
	for _, rr := range r.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	r.Extra = kept
	r.SetEdns0(maxDatagram, asked.Do())
}

// answer finds the answer to a query, which is never nil.
func (s *Server) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	opt := q.IsEdns0()
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return refusal(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return refusal(q, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return refusal(q, dns.RcodeBadVers)
	case q.Question[0].Qclass != dns.ClassINET:
		return refusal(q, dns.RcodeRefused)
	}
	question := q.Question[0]
	r := refusal(q, dns.RcodeSuccess)
	if a, ok := s.own(question); ok {
		s.chase(ctx, question, &a)
		r.Authoritative = true
		r.Rcode, r.Answer, r.Extra, r.Ns = a.rcode, a.answer, a.extra, a.authority
		return r
	}
	found, err := s.forward.ask(ctx, q)
	if err != nil {
		s.options.Log.Debug("asking this machine's resolvers", "name", question.Name, "err", err)
		return refusal(q, dns.RcodeServerFailure)
	}
	r.Rcode, r.Answer, r.Ns, r.Extra = found.Rcode, found.Answer, found.Ns, found.Extra
	r.AuthenticatedData = found.AuthenticatedData
	return r
}

// own answers names that nobody else may answer.
func (s *Server) own(question dns.Question) (answer, bool) {
	if a, ok := s.zone.answer(question); ok {
		return a, true
	}
	if s.options.Host == nil {
		return answer{}, false
	}
	addr, ok := s.options.Host(strings.TrimSuffix(strings.ToLower(question.Name), "."))
	if !ok {
		return answer{}, false
	}
	var a answer
	if question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY {
		a.answer = append(a.answer, addressRecord(question.Name, addr))
	} else {
		a.authority = []dns.RR{soa(s.zone.domain, question.Name)}
	}
	return a, true
}

// maxChase bounds how many names in a row may stand for another.
const maxChase = 8

// chase finds what an alias at the end of the answer stands for.
func (s *Server) chase(ctx context.Context, question dns.Question, a *answer) {
	for range maxChase {
		if len(a.answer) == 0 || question.Qtype == dns.TypeCNAME {
			return
		}
		alias, ok := a.answer[len(a.answer)-1].(*dns.CNAME)
		if !ok {
			return
		}
		question.Name = alias.Target
		next, ok := s.own(question)
		if !ok {
			s.chaseOutside(ctx, question, a)
			return
		}
		a.answer = append(a.answer, next.answer...)
		a.rcode, a.authority = next.rcode, next.authority
	}
	a.rcode = dns.RcodeServerFailure
}

func (s *Server) chaseOutside(ctx context.Context, question dns.Question, a *answer) {
	q := new(dns.Msg)
	q.SetQuestion(question.Name, question.Qtype)
	found, err := s.forward.ask(ctx, q)
	if err != nil {
		a.rcode = dns.RcodeServerFailure
		return
	}
	a.rcode, a.authority = found.Rcode, found.Ns
	a.answer = append(a.answer, found.Answer...)
}

// refusal is an answer without records.
func refusal(q *dns.Msg, rcode int) *dns.Msg {
	r := new(dns.Msg)
	r.SetRcode(q, rcode)
	r.RecursionAvailable = true
	return r
}
