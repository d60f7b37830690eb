// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns the two ends of a TCP connection.
func pair(t testing.TB) (a, b *net.TCPConn) {
	l, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = Dial(context.Background(), l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		c.Close()
	})
	return a, c.(*net.TCPConn)
}

func stream(t testing.TB, c *net.TCPConn) *Stream {
	s, err := NewStream(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestListenOnAddressThatIsNotYetThere(t *testing.T) {
	l, err := Listen(t.Context(), "192.0.2.1:0") // a documentation address
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Listen(t.Context(), "nonsense"); err == nil {
		t.Error("listening on nonsense")
	}
}

func TestInherit(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := File(l)
	if err != nil {
		t.Fatal(err)
	}
	// A descriptor of its own, as a child would find it.
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	heir, err := Inherit(uintptr(fd), "gateway")
	if err != nil {
		t.Fatal(err)
	}
	defer heir.Close()
	l.Close()
	c, err := Dial(t.Context(), heir.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := Inherit(9999, "none"); err == nil {
		t.Error("inherited a descriptor that is not there")
	}
}

func TestDialSaysWhatIsWrong(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	var op *net.OpError
	if _, err := Dial(t.Context(), addr); !errors.As(err, &op) || op.Op != "dial" {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), netip.AddrPort{}); err == nil {
		t.Error("connected to nowhere")
	}
}

func TestStream(t *testing.T) {
	a, b := pair(t)
	s := stream(t, a)
	pool := NewPool(Small)
	if !s.Quiet() {
		t.Error("not quiet")
	}
	read := make(chan string)
	go func() {
		buf, n, err := s.ReadPooled(pool)
		if err != nil {
			read <- err.Error()
			return
		}
		read <- string((*buf)[:n])
		pool.Put(buf)
	}()
	b.Write([]byte("hello"))
	if got := <-read; got != "hello" {
		t.Error(got)
	}

	// Writes that are longer than what the connection holds.
	one, two := bytes.Repeat([]byte("1"), 5<<20), bytes.Repeat([]byte("2"), 5<<20)
	wrote := make(chan error)
	go func() {
		n, err := s.WriteTwo(one, two)
		if n != len(one)+len(two) {
			t.Error(n)
		}
		wrote <- err
	}()
	got := make([]byte, len(one)+len(two))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got[:len(one)], one) || !bytes.Equal(got[len(one):], two) {
		t.Error("other bytes", err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}

	go s.InterruptRead()
	var timeout net.Error
	if _, err := s.Read(got); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Error(err)
	}
	if _, _, err := s.ReadPooled(pool); !errors.As(err, &timeout) {
		t.Error(err)
	}
	s.InterruptWrite()
	if _, err := s.Write(got); !errors.As(err, &timeout) {
		t.Error(err)
	}
	s.Resume()
	b.Write([]byte("x"))
	if n, err := s.Read(got); n != 1 || err != nil {
		t.Error(n, err)
	}
	b.Close()
	if _, err := s.Read(got); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if s.Quiet() {
		t.Error("quiet after its end")
	}
}

func TestAwaitEnd(t *testing.T) {
	a, b := pair(t)
	s := stream(t, a)
	ended := make(chan error)
	go func() { ended <- s.AwaitEnd() }()
	b.Write([]byte("unread"))
	select {
	case err := <-ended:
		t.Fatal("ended by data:", err)
	case <-time.After(20 * time.Millisecond):
	}
	b.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	data, err := io.ReadAll(a)
	if string(data) != "unread" || err != nil {
		t.Errorf("%q, %v", data, err)
	}

	a, _ = pair(t)
	s = stream(t, a)
	go s.InterruptRead()
	if err := s.AwaitEnd(); err == nil {
		t.Error("ended by an interrupt")
	}
}

func TestReset(t *testing.T) {
	a, b := pair(t)
	stream(t, a).Reset()
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Error("a reset looks like an end:", err)
	}
}

func TestJoin(t *testing.T) {
	for _, tapped := range []bool{false, true} {
		client, a := pair(t)
		b, server := pair(t)
		var taps atomic.Int32
		var tap func()
		if tapped {
			tap = func() { taps.Add(1) }
		}
		joined := make(chan error, 1)
		go func() { joined <- Join(a, b, tap) }()
		data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		go func() {
			client.Write(data)
			client.CloseWrite()
		}()
		got, err := io.ReadAll(server)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatal(len(got), err)
		}
		// The other direction goes on.
		go func() {
			server.Write(data)
			server.Close()
		}()
		got, err = io.ReadAll(client)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatal(len(got), err)
		}
		if err := <-joined; err != nil {
			t.Error(err)
		}
		if tapped != (taps.Load() > 0) {
			t.Error(taps.Load(), "taps")
		}
	}
	// One side fails: the other learns of it.
	client, a := pair(t)
	b, server := pair(t)
	joined := make(chan error, 1)
	go func() { joined <- Join(a, b, nil) }()
	stream(t, server).Reset()
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("read from a dead peer")
	}
	<-joined
}

func TestHandoff(t *testing.T) {
	h := NewHandoff(&net.TCPAddr{})
	a, b := pair(t)
	go h.Give(a, []byte("head "))
	c, err := h.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b.Write([]byte("tail"))
	b.Close()
	if got, err := io.ReadAll(c); string(got) != "head tail" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	h.Close()
	h.Close()
	if h.Give(a, nil) {
		t.Error("given to a closed listener")
	}
	if _, err := h.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestPool(t *testing.T) {
	p := NewPool(Small)
	b := p.Get()
	if len(*b) != Small {
		t.Error(len(*b))
	}
	*b = (*b)[:1]
	p.Put(b)
	if b := p.Get(); len(*b) != Small {
		t.Error(len(*b))
	}
	other := make([]byte, 1)
	p.Put(&other)
	if b := p.Get(); len(*b) != Small {
		t.Error(len(*b))
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	one, two := pair(b)
	s, echo := stream(b, one), stream(b, two)
	go func() {
		buf := make([]byte, 100)
		for {
			n, err := echo.Read(buf)
			if err != nil {
				return
			}
			echo.Write(buf[:n])
		}
	}()
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		s.Write(buf)
		if _, err := s.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
