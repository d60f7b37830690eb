// SPDX-License-Identifier: Apache-2.0

// Package protocols passes everything that HTTP can carry through the whole
// path, each to a service that runs and to one at zero.
package protocols

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

const manifest = `apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/window: 6s}}
    spec:
      timeoutSeconds: 20
      containers:
      - image: %s
        ports: [{name: %s, containerPort: 8080}]
        env: [{name: MODE, value: "%s"}]
`

var deploy = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

// each runs a scenario against a service that runs, and one that is at zero.
func each(t *testing.T, namespace, port, mode string, scenario func(t *testing.T, host string)) {
	t.Parallel()
	if err := deploy(); err != nil {
		t.Fatal(err)
	}
	s := p.Space(t, namespace)
	s.Make(fmt.Sprintf(manifest, "web", p.App(), port, mode))
	s.K("wait", "ksvc/web", "--for=condition=Ready", "--timeout=90s")
	host := p.Host("web", namespace)
	t.Run("running", func(t *testing.T) { scenario(t, host) })
	t.Run("from zero", func(t *testing.T) {
		platform.Eventually(t, time.Minute, func() error {
			out, err := s.Try("get", "pod", "-o", "name")
			if err == nil && strings.Contains(out, "pod/") {
				err = fmt.Errorf("pods are still there: %s", out)
			}
			return err
		})
		scenario(t, host)
	})
}

// client of HTTP/1.1 or of HTTP/2 without TLS.
func client(t *testing.T, two bool) *http.Client {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!two)
	protocols.SetUnencryptedHTTP2(two)
	transport := &http.Transport{Protocols: protocols, DisableCompression: true, ExpectContinueTimeout: 30 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func send(t *testing.T, c *http.Client, method, host, path string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.URL()+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// What the app says about a request.
type about struct {
	Method, Host, Proto, URI, Remote string
	Header                           http.Header
	Length                           int64
	Body                             int
}

func tell(t *testing.T, resp *http.Response) (a about) {
	t.Helper()
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	return a
}

func TestKeepAlive(t *testing.T) {
	each(t, "keepalive", "http1", "", func(t *testing.T, host string) {
		c, reused := client(t, false), 0
		for range 5 {
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
				if i.Reused {
					reused++
				}
			}})
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+"/about?x=%2F&y", nil)
			req.Host = host
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if a := tell(t, resp); a.Proto != "HTTP/1.1" || a.URI != "/about?x=%2F&y" || a.Host != host {
				t.Errorf("the app was asked %+v", a)
			}
			resp.Body.Close()
		}
		if reused != 4 {
			t.Errorf("the connection was used again %d times, want 4", reused)
		}
	})
}

func TestHeaders(t *testing.T) {
	each(t, "headers", "http1", "", func(t *testing.T, host string) {
		a := tell(t, send(t, client(t, false), http.MethodPost, host, "/about", strings.NewReader("12345"), "X-Own", "1", "X-Own", "2", "Cookie", "a=b", "Forwarded-Own", "x"))
		for name, want := range map[string]string{
			"X-Forwarded-For": `^127\.0\.0\.1$`, "X-Forwarded-Proto": "^http$", "X-Request-Id": `^[0-9a-f-]{36}$`,
			"Forwarded": `^for=127\.0\.0\.1;proto=http$`, "X-Own": "^1$", "Cookie": "^a=b$", "Content-Length": "^5$",
		} {
			if got := a.Header.Get(name); !regexp.MustCompile(want).MatchString(got) && name != "Content-Length" {
				t.Errorf("%s is %q, want %s", name, got, want)
			}
		}
		if a.Length != 5 || a.Body != 5 || a.Method != http.MethodPost || len(a.Header["X-Own"]) != 2 {
			t.Errorf("the app was asked %+v", a)
		}
		a = tell(t, send(t, client(t, false), http.MethodGet, host, "/about", nil, "X-Forwarded-For", "192.0.2.1", "X-Forwarded-Proto", "https", "X-Request-Id", "mine"))
		if a.Header.Get("X-Forwarded-For") != "192.0.2.1, 127.0.0.1" || a.Header.Get("X-Forwarded-Proto") != "https" || a.Header.Get("X-Request-Id") != "mine" {
			t.Errorf("headers that were given: %v", a.Header)
		}
		for name := range a.Header {
			if strings.HasPrefix(name, "K-") || strings.HasPrefix(name, "Knative-") {
				t.Errorf("the app sees %s", name)
			}
		}
	})
}

func TestHTTP2(t *testing.T) {
	each(t, "h2c", "h2c", "", func(t *testing.T, host string) {
		c := client(t, true)
		resp := send(t, c, http.MethodPost, host, "/about", strings.NewReader("12345"))
		if resp.ProtoMajor != 2 {
			t.Errorf("answer in %s", resp.Proto)
		}
		if a := tell(t, resp); a.Proto != "HTTP/2.0" || a.Body != 5 || a.Host != host || a.Header.Get("X-Forwarded-For") != "127.0.0.1" {
			t.Errorf("the app was asked %+v", a)
		}
		// A client of HTTP/1.1 reaches the same app.
		if a := tell(t, send(t, client(t, false), http.MethodGet, host, "/about", nil)); a.Proto != "HTTP/2.0" {
			t.Errorf("from HTTP/1.1, the app was asked %+v", a)
		}
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				req, _ := http.NewRequest(http.MethodGet, p.URL()+"/?wait=50ms", nil)
				req.Host = host
				if resp, err := c.Do(req); err != nil || resp.StatusCode != 200 {
					t.Errorf("%v, %v", resp, err)
				}
			})
		}
		group.Wait()
	})
}

func TestHTTP2ToHTTP1(t *testing.T) {
	each(t, "h2toh1", "http1", "", func(t *testing.T, host string) {
		resp := send(t, client(t, true), http.MethodPost, host, "/about", strings.NewReader("12345"))
		if a := tell(t, resp); resp.ProtoMajor != 2 || a.Proto != "HTTP/1.1" || a.Body != 5 {
			t.Errorf("%s: the app was asked %+v", resp.Proto, a)
		}
	})
}

func TestStreams(t *testing.T) {
	for port, two := range map[string]bool{"http1": false, "h2c": true} {
		t.Run(port, func(t *testing.T) {
			each(t, "streams-"+port, port, "", func(t *testing.T, host string) { bothWays(t, client(t, two), host) })
		})
	}
}

// bothWays sends a piece and waits for it to come back before it sends the next.
func bothWays(t *testing.T, c *http.Client, host string) {
	r, w := io.Pipe()
	go func() { fmt.Fprint(w, "0") }()
	resp := send(t, c, http.MethodPost, host, "/echo", r)
	for i := range 20 {
		if i > 0 {
			fmt.Fprint(w, i%10)
		}
		buf := make([]byte, 1)
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != fmt.Sprint(i%10) {
			t.Fatalf("piece %d came back as %q, %v", i, buf, err)
		}
	}
	w.Close()
	if rest := text(t, resp); rest != "" {
		t.Errorf("more came back: %q", rest)
	}
}

func TestServerSentEvents(t *testing.T) {
	each(t, "events", "http1", "", func(t *testing.T, host string) {
		resp := send(t, client(t, false), http.MethodGet, host, "/events?n=5&every=100ms", nil)
		var came []time.Time
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "data:") {
				came = append(came, time.Now())
			}
		}
		if len(came) != 5 || came[4].Sub(came[0]) < 250*time.Millisecond {
			t.Errorf("events came at %v, want one by one", came)
		}
	})
}

func TestLargeUpload(t *testing.T) {
	each(t, "upload", "http1", "", func(t *testing.T, host string) {
		data := make([]byte, 64<<20)
		_, _ = rand.Read(data)
		want := fmt.Sprintf("%d %x", len(data), sha256.Sum256(data))
		for name, body := range map[string]io.Reader{"length": bytes.NewReader(data), "chunks": io.MultiReader(bytes.NewReader(data))} {
			if got := text(t, send(t, client(t, false), http.MethodPost, host, "/digest", body)); got != want {
				t.Errorf("%s: the app read %s, want %s", name, got, want)
			}
		}
		if got := text(t, send(t, client(t, true), http.MethodPost, host, "/digest", bytes.NewReader(data))); got != want {
			t.Errorf("HTTP/2: the app read %s, want %s", got, want)
		}
	})
}

func TestTrailers(t *testing.T) {
	for port, two := range map[string]bool{"http1": false, "h2c": true} {
		t.Run(port, func(t *testing.T) {
			each(t, "trailers-"+port, port, "", func(t *testing.T, host string) {
				req, _ := http.NewRequest(http.MethodPost, p.URL()+"/trailers", io.MultiReader(strings.NewReader("hello")))
				req.Host, req.Trailer = host, http.Header{"X-Sum": {"42"}}
				resp, err := client(t, two).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if body := text(t, resp); body != "body" || resp.Trailer.Get("X-Sum") != "42!" {
					t.Errorf("%q with trailers %v", body, resp.Trailer)
				}
			})
		})
	}
}

func TestHead(t *testing.T) {
	each(t, "head", "http1", "", func(t *testing.T, host string) {
		c := client(t, false)
		for range 2 {
			resp := send(t, c, http.MethodHead, host, "/about", nil)
			if body := text(t, resp); resp.StatusCode != 200 || body != "" || resp.Header.Get("X-Method") != "HEAD" {
				t.Errorf("%s %q %v", resp.Status, body, resp.Header)
			}
		}
		for _, code := range []string{"204", "304", "404", "418", "503"} {
			if resp := send(t, c, http.MethodGet, host, "/?status="+code, nil); !strings.HasPrefix(resp.Status, code) {
				t.Errorf("%s, want %s", resp.Status, code)
			}
		}
	})
}

func TestExpectContinue(t *testing.T) {
	each(t, "expect", "http1", "", func(t *testing.T, host string) {
		told := false
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { told = true }})
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, p.URL()+"/digest", strings.NewReader("hello"))
		req.Host = host
		req.Header.Set("Expect", "100-continue")
		resp, err := client(t, false).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body := text(t, resp); !strings.HasPrefix(body, "5 ") || !told {
			t.Errorf("%q, told to go on: %v", body, told)
		}
	})
}

func TestWebSocket(t *testing.T) {
	each(t, "websocket", "http1", "", func(t *testing.T, host string) {
		config, err := websocket.NewConfig("ws://"+host+"/ws", "http://"+host)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		ws, err := websocket.NewClient(config, conn)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 1000, 100_000} {
			sent := bytes.Repeat([]byte("x"), size)
			if err := websocket.Message.Send(ws, sent); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, size)
			if _, err := io.ReadFull(ws, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%d bytes came back wrong: %v", size, err)
			}
		}
	})
}

func TestGRPC(t *testing.T) {
	each(t, "grpc", "h2c", "grpc", func(t *testing.T, host string) {
		conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(p.URL(), "http://"), grpc.WithAuthority(host), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := testpb.NewTestServiceClient(conn)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		one, err := c.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 100_000})
		if err != nil || len(one.GetPayload().GetBody()) != 100_000 {
			t.Fatalf("unary: %v, %v", one, err)
		}
		_, err = c.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(codes.FailedPrecondition), Message: "not yet"}})
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "not yet" {
			t.Errorf("status: %v", err)
		}
		serverStream(ctx, t, c)
		clientStream(ctx, t, c)
		duplex(ctx, t, c)
	})
}

func serverStream(ctx context.Context, t *testing.T, c testpb.TestServiceClient) {
	in := &testpb.StreamingOutputCallRequest{}
	for range 10 {
		in.ResponseParameters = append(in.ResponseParameters, &testpb.ResponseParameters{Size: 10_000})
	}
	s, err := c.StreamingOutputCall(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		if _, err = s.Recv(); err != nil {
			break
		}
		n++
	}
	if err != io.EOF || n != 10 {
		t.Errorf("the server's stream had %d messages: %v", n, err)
	}
}

func clientStream(ctx context.Context, t *testing.T, c testpb.TestServiceClient) {
	s, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := s.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: make([]byte, 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := s.CloseAndRecv(); err != nil || sum.GetAggregatedPayloadSize() != 10_000 {
		t.Errorf("the client's stream: %v, %v", sum, err)
	}
}

func duplex(ctx context.Context, t *testing.T, c testpb.TestServiceClient) {
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := s.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: make([]byte, i)}}); err != nil {
			t.Fatal(err)
		}
		if m, err := s.Recv(); err != nil || len(m.GetPayload().GetBody()) != i {
			t.Fatalf("message %d: %v, %v", i, m, err)
		}
	}
	_ = s.CloseSend()
	if _, err := s.Recv(); err != io.EOF {
		t.Errorf("the end of both streams: %v", err)
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	if err := deploy(); err != nil {
		t.Fatal(err)
	}
	s := p.Space(t, "timeouts")
	s.Make(strings.Replace(fmt.Sprintf(manifest, "web", p.App(), "http1", ""), "timeoutSeconds: 20", "timeoutSeconds: 2\n      responseStartTimeoutSeconds: 1", 1))
	s.K("wait", "ksvc/web", "--for=condition=Ready", "--timeout=90s")
	c, host := client(t, false), p.Host("web", "timeouts")
	if resp := send(t, c, http.MethodGet, host, "/?wait=1500ms", nil); resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(text(t, resp), "timeout") {
		t.Errorf("no answer begun in time: %s", resp.Status)
	}
	if resp := send(t, c, http.MethodGet, host, "/?flush=1&then=1500ms", nil); resp.StatusCode != 200 || text(t, resp) != "web-00001" {
		t.Errorf("an answer that began in time: %s", resp.Status)
	}
	resp := send(t, c, http.MethodGet, host, "/?flush=1&then=5s", nil)
	if body := text(t, resp); resp.StatusCode != 200 || body != "request timeout" {
		t.Errorf("an answer longer than the timeout: %s %q", resp.Status, body)
	}
}
