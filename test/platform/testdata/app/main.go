// SPDX-License-Identifier: Apache-2.0

// App is what the serving scenarios run as a service: it speaks every protocol,
// and its environment says how it behaves.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

func main() {
	if len(os.Args) > 1 {
		do(os.Args[1:])
	}
	begin()
	if text := os.Getenv("SAY"); text != "" {
		fmt.Println(text)
	}
	if code, err := strconv.Atoi(os.Getenv("EXIT")); err == nil {
		fmt.Println("leaving with", code)
		os.Exit(code)
	}
	if wait, err := time.ParseDuration(os.Getenv("START_DELAY")); err == nil {
		time.Sleep(wait)
	}
	port := os.Getenv("LISTEN")
	if port == "" {
		port = os.Getenv("PORT")
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		log.Fatal(err)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if os.Getenv("MODE") == "grpc" {
		s := grpc.NewServer()
		testpb.RegisterTestServiceServer(s, &rpc{})
		healthpb.RegisterHealthServer(s, healthOf())
		go func() { <-term; s.GracefulStop() }()
		log.Fatal(s.Serve(l))
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler(), Protocols: protocols}
	go func() {
		<-term
		fmt.Println("told to end")
		if os.Getenv("ON_TERM") == "stay" {
			return
		}
		os.Exit(0) // at once: no request may be left to it by then
	}()
	log.Fatal(server.Serve(l))
}

var now, peak atomic.Int64

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", answer)
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/about", about)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/digest", digest)
	mux.HandleFunc("/trailers", trailers)
	mux.HandleFunc("/fetch", fetch)
	mux.HandleFunc("/lookup", lookup)
	mux.HandleFunc("/inside", inside)
	mux.HandleFunc("/health", wellness)
	mux.HandleFunc("/probed", probed)
	mux.HandleFunc("/fail", func(http.ResponseWriter, *http.Request) { sick.Store(true) })
	mux.HandleFunc("/recover", func(http.ResponseWriter, *http.Request) { sick.Store(false) })
	mux.HandleFunc("/crash", crash)
	mux.HandleFunc("/say", say)
	mux.Handle("/ws", websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(c, c) }))
	return mux
}

// turns are the requests with an id, in the order in which they came.
var turns order

type order struct {
	mu  sync.Mutex
	ids []string
}

func (o *order) add(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids = append(o.ids, id)
}

func (o *order) list() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.ids, " ")
}

var held struct {
	mu    sync.Mutex
	bytes []byte
}

// work uses the processor for a while, or so much memory from then on.
func work(q url.Values) {
	if id := q.Get("id"); id != "" {
		turns.add(id)
	}
	if burn, err := time.ParseDuration(q.Get("burn")); err == nil {
		for end := time.Now().Add(burn); time.Now().Before(end); {
		}
	}
	if mib, err := strconv.Atoi(q.Get("hold")); err == nil {
		held.mu.Lock()
		defer held.mu.Unlock()
		held.bytes = make([]byte, mib<<20)
		for i := 0; i < len(held.bytes); i += 4096 {
			held.bytes[i] = 1
		}
	}
}

// answer waits if asked to, and says who has answered.
func answer(w http.ResponseWriter, r *http.Request) {
	n := now.Add(1)
	defer now.Add(-1)
	for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
	}
	q := r.URL.Query()
	work(q)
	if wait, err := time.ParseDuration(q.Get("wait")); err == nil {
		time.Sleep(wait)
	}
	if q.Get("flush") != "" {
		_ = http.NewResponseController(w).Flush()
	}
	if wait, err := time.ParseDuration(q.Get("then")); err == nil {
		time.Sleep(wait)
	}
	if code, err := strconv.Atoi(q.Get("status")); err == nil {
		w.WriteHeader(code)
	}
	switch {
	case q.Has("pod"):
		host, _ := os.Hostname()
		fmt.Fprint(w, host)
	case q.Has("busy"):
		fmt.Fprint(w, n)
	case q.Has("peak"):
		fmt.Fprint(w, peak.Load())
	case q.Has("order"):
		fmt.Fprint(w, turns.list())
	case os.Getenv("RESPONSE") != "":
		fmt.Fprint(w, os.Getenv("RESPONSE"))
	default:
		fmt.Fprint(w, os.Getenv("K_REVISION"))
	}
}

// echo sends each piece back as soon as it has come.
func echo(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	_ = c.EnableFullDuplex()
	_ = c.Flush()
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			_ = c.Flush()
		}
		if err != nil {
			return
		}
	}
}

func about(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Method", r.Method)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"method": r.Method, "host": r.Host, "proto": r.Proto, "uri": r.RequestURI, "header": r.Header,
		"length": r.ContentLength, "body": len(body), "remote": r.RemoteAddr, "env": os.Environ(),
	})
}

func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	n, _ := strconv.Atoi(r.URL.Query().Get("n"))
	every, _ := time.ParseDuration(r.URL.Query().Get("every"))
	for i := range n {
		fmt.Fprintf(w, "data: %d\n\n", i)
		_ = http.NewResponseController(w).Flush()
		time.Sleep(every)
	}
}

func digest(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
}

// trailers sends the request's trailers back as its own.
func trailers(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-Sum")
	_, _ = io.Copy(io.Discard, r.Body)
	fmt.Fprint(w, "body")
	w.Header().Set("X-Sum", r.Trailer.Get("X-Sum")+"!")
}

// fetch asks a URL from where the app runs, with a host name of its own if given.
func fetch(w http.ResponseWriter, r *http.Request) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.Query().Get("url"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if h := r.URL.Query().Get("host"); h != "" {
		req.Host = h
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

func lookup(w http.ResponseWriter, r *http.Request) {
	addrs, err := net.DefaultResolver.LookupHost(r.Context(), r.URL.Query().Get("name"))
	fmt.Fprint(w, addrs, err)
}
