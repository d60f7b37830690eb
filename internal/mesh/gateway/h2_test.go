// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

func speaksH2(r *routing.Revision) { r.Protocol = routing.H2C }

// about answers with how the request has come.
var about = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Trailer", "X-End")
	fmt.Fprintf(w, "%s %s %s %q %s %s", r.Proto, r.Method, r.Host, body, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("Forwarded"))
	w.Header().Set("X-End", "here")
})

func TestProtocols(t *testing.T) {
	w := newWorld(t)
	w.serve("one", about)
	w.serve("two", about, speaksH2)
	for _, c := range []struct {
		client *http.Client
		host   string
		proto  string
	}{
		{w.client(), "one", "HTTP/1.1"},
		{w.client(), "two", "HTTP/2.0"},
		{w.h2client(), "one", "HTTP/1.1"},
		{w.h2client(), "two", "HTTP/2.0"},
	} {
		for range 3 {
			resp, err := c.client.Post("http://"+c.host+".example/x", "", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			want := fmt.Sprintf("%s POST %s.example %q http for=127.0.0.1;proto=http", c.proto, c.host, "body")
			if err != nil || string(body) != want || resp.Trailer.Get("X-End") != "here" {
				t.Errorf("got %q %v, %v; want %q", body, resp.Trailer, err, want)
			}
		}
		// And back to an app of the other kind on the same connection.
		if status, _ := get(t, c.client, "http://one.example/"); status != 200 {
			t.Error(status)
		}
		if status, _ := get(t, c.client, "http://nobody.example/"); status != 404 {
			t.Error(status)
		}
	}
}

// TestUpgradeToH2C asks for HTTP/2 in the way of RFC 7540.
func TestUpgradeToH2C(t *testing.T) {
	w := newWorld(t)
	w.serve("web", about)
	c, in := w.talk()
	settings := base64.RawURLEncoding.EncodeToString([]byte{0, 3, 0, 0, 0, 100})
	fmt.Fprintf(c, "GET /up HTTP/1.1\r\nHost: web.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: %s\r\nX-Big: %s\r\n\r\n", settings, strings.Repeat("big~", 10_000))
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, in)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var body strings.Builder
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok && d.StreamID == 1 {
			body.Write(d.Data())
		}
		if f.Header().StreamID == 1 && f.Header().Flags.Has(http2.FlagDataEndStream) {
			break
		}
	}
	if !strings.HasPrefix(body.String(), "HTTP/1.1 GET web.example") {
		t.Errorf("%q", body.String())
	}
}

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	ws := websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(c, c) })
	w.serve("web", ws)
	w.serve("two", ws, speaksH2)
	for _, host := range []string{"web.example", "two.example"} {
		config, err := websocket.NewConfig("ws://"+host+"/", "http://"+host+"/")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := websocket.NewClient(config, raw)
		if err != nil {
			t.Fatal(host, err)
		}
		for i := range 100 {
			text := strings.Repeat(fmt.Sprint(i), 1+i*100)
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			back := make([]byte, len(text))
			if _, err := io.ReadFull(c, back); err != nil || string(back) != text {
				t.Fatal(i, err)
			}
		}
		c.Close()
	}
	w.eventually(func() bool { return w.inFlight("web")+w.inFlight("two") == 0 })
}

// TestWebSocketStaysWhilePodLeaves: in a pod that gets no new requests, what is
// open stays open.
func TestWebSocketStaysWhilePodLeaves(t *testing.T) {
	w := newWorld(t)
	p := w.serve("web", websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(c, c) }))
	config, _ := websocket.NewConfig("ws://web.example/", "http://web.example/")
	raw, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := websocket.NewClient(config, raw)
	if err != nil {
		t.Fatal(err)
	}
	p.gone()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	c.Close()
	w.eventually(func() bool { return w.inFlight("web") == 0 })
}

// talker is a gRPC service: Echo answers one message, Chat each as it comes.
type talker struct{}

func (talker) echo(_ context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
	if in.Value == "fail" {
		return nil, status.Error(codes.FailedPrecondition, "as you wish")
	}
	return in, nil
}

func (talker) chat(_ any, s grpc.ServerStream) error {
	s.SetTrailer(metadata.Pairs("x-end", "here"))
	for {
		var in wrapperspb.StringValue
		if err := s.RecvMsg(&in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&in); err != nil {
			return err
		}
	}
}

func (x talker) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "talker", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.StringValue
			if err := dec(&in); err != nil {
				return nil, err
			}
			return x.echo(ctx, &in)
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Chat", Handler: x.chat, ServerStreams: true, ClientStreams: true}},
	}
}

func TestGRPC(t *testing.T) {
	w := newWorld(t)
	l := listen(t)
	server := grpc.NewServer()
	server.RegisterService(talker{}.desc(), talker{})
	go server.Serve(l)
	t.Cleanup(server.Stop)
	p := w.serveOn("web", l, speaksH2)
	conn, err := grpc.NewClient("passthrough:///"+w.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("web.example"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	call := func(text string) (string, error) {
		var out wrapperspb.StringValue
		err := conn.Invoke(ctx, "/talker/Echo", wrapperspb.String(text), &out)
		return out.Value, err
	}
	for _, size := range []int{0, 5, 100_000} {
		if got, err := call(strings.Repeat("x", size)); err != nil || len(got) != size {
			t.Errorf("%d: %d, %v", size, len(got), err)
		}
	}
	if _, err := call("fail"); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "as you wish") {
		t.Error(err)
	}

	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/talker/Chat")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		var out wrapperspb.StringValue
		if err := stream.RecvMsg(&out); err != nil || out.Value != fmt.Sprint(i) {
			t.Fatal(i, out.Value, err)
		}
	}
	stream.CloseSend()
	if err := stream.RecvMsg(&wrapperspb.StringValue{}); !errors.Is(err, io.EOF) || len(stream.Trailer()["x-end"]) != 1 {
		t.Error(err, stream.Trailer())
	}

	// From zero: the call is held, and goes through.
	p.gone()
	got := make(chan error)
	go func() {
		_, err := call("held")
		got <- err
	}()
	w.eventually(func() bool { return w.held("web") == 1 })
	p.endpoint.UID = "another"
	p.up()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestH2Floods has clients abuse HTTP/2. Each is sent away, or bounded, and
// others do not notice.
func TestH2Floods(t *testing.T) {
	w := newWorld(t)
	w.serve("web", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
		}
		hello(rw, r)
	}))
	for name, flood := range map[string]func(*http2.Framer, *hpack.Encoder, *strings.Builder) error{
		"reset": func(f *http2.Framer, enc *hpack.Encoder, block *strings.Builder) error {
			for id := uint32(1); id < 100_000; id += 2 {
				block.Reset()
				for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "web.example"}, {":path", "/wait"}} {
					enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
				}
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}); err != nil {
					return err
				}
				if err := f.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
					return err
				}
			}
			return nil
		},
		"settings": func(f *http2.Framer, _ *hpack.Encoder, _ *strings.Builder) error {
			for range 100_000 {
				if err := f.WriteSettings(); err != nil {
					return err
				}
			}
			return nil
		},
		"ping": func(f *http2.Framer, _ *hpack.Encoder, _ *strings.Builder) error {
			for range 100_000 {
				if err := f.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return nil
		},
		"continuation": func(f *http2.Framer, _ *hpack.Encoder, _ *strings.Builder) error {
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x40, 1, 'x', 1, 'y'}}); err != nil {
				return err
			}
			for range 100_000 {
				if err := f.WriteContinuation(1, false, []byte{0x40, 1, 'x', 1, 'y'}); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := w.talk()
			_ = c.SetDeadline(time.Now().Add(3 * time.Second)) // nobody reads what comes back
			io.WriteString(c, http2.ClientPreface)
			f := http2.NewFramer(c, nil)
			if err := f.WriteSettings(); err != nil {
				t.Fatal(err)
			}
			var block strings.Builder
			ended := make(chan error, 1)
			go func() { ended <- flood(f, hpack.NewEncoder(&block), &block) }()
			started := time.Now()
			for range 20 {
				if status, body := get(t, w.client(), "http://web.example/"); status != 200 || body != "hello" {
					t.Errorf("%d %q", status, body)
				}
			}
			t.Logf("20 others took %v", time.Since(started))
			t.Log("the flood ended with", <-ended)
			c.Close()
		})
	}
	w.eventually(func() bool { return w.inFlight("web") == 0 })
}
