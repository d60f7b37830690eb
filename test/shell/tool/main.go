// SPDX-License-Identifier: Apache-2.0

// Command tool does in a pod what a shell cannot.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sick makes the health checks fail while it exists.
const sick = "/tmp/sick"

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	if len(os.Args) < 2 {
		fail("usage: tool serve|grpc|udp|ask|api|push|eat|hold …")
	}
	args := append(os.Args[2:], "0")
	switch os.Args[1] {
	case "serve":
		serve(args[0])
	case "grpc":
		health(args[0])
	case "udp":
		datagrams(args[0])
	case "ask":
		ask(args[0])
	case "api":
		api(args[0])
	case "push":
		push(args[0], args[1])
	case "eat":
		eat(args[0])
	case "hold":
		hold(args[0])
	default:
		fail("unknown: " + os.Args[1])
	}
}

func fail(v any) {
	fmt.Fprintln(os.Stderr, v)
	os.Exit(1)
}

// serve says who answers, and to whom.
func serve(port string) {
	host, _ := os.Hostname()
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, host) })
	http.HandleFunc("/from", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(sick); err == nil {
			http.Error(w, "sick", http.StatusInternalServerError)
		}
	})
	fmt.Println("listening on", port)
	go hold("")
	fail(http.ListenAndServe(":"+port, nil))
}

// health is a gRPC health service, written out: one message and a trailer.
func health(port string) {
	server := &http.Server{Addr: ":" + port, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		status := byte(1) // SERVING
		if _, err := os.Stat(sick); err == nil {
			status = 2
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		message := []byte{0, 0, 0, 0, 0, 0x08, status}
		binary.BigEndian.PutUint32(message[1:], 2)
		_, _ = w.Write(message)
		w.Header().Set("Grpc-Status", "0")
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	fail(server.ListenAndServe())
}

// datagrams answers each datagram with the host's name.
func datagrams(port string) {
	host, _ := os.Hostname()
	c, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		fail(err)
	}
	buf := make([]byte, 1500)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			fail(err)
		}
		_, _ = c.WriteTo([]byte(host+"\n"), from)
	}
}

// ask sends a datagram and prints the answer.
func ask(address string) {
	c, err := net.Dial("udp", address)
	if err != nil {
		fail(err)
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		fail(err)
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		fail(err)
	}
	fmt.Print(string(buf[:n]))
}

// api asks the API server as the pod's service account and prints status and body.
func api(path string) {
	token, err := os.ReadFile(account + "token")
	if err != nil {
		fail(err)
	}
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		fail(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	req, err := http.NewRequest(http.MethodGet, "https://kubernetes.default.svc"+path, nil)
	if err != nil {
		fail(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := client.Do(req)
	if err != nil {
		fail(err)
	}
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%d %s\n", resp.StatusCode, body)
}

// eat takes so many MiB of memory and keeps them.
func eat(mebibytes string) {
	n, err := strconv.Atoi(mebibytes)
	if err != nil {
		fail(err)
	}
	food := make([]byte, n<<20)
	for i := 0; i < len(food); i += 4096 {
		food[i] = 1
	}
	fmt.Println("ate", n)
	hold("0")
}

// hold runs until it is told to end, and then leaves with the given code.
func hold(code string) {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	if code != "" {
		fmt.Println("holding")
	}
	fmt.Println("told", <-told)
	n, _ := strconv.Atoi(code)
	os.Exit(n)
}
