// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// An Answer is what came back to one request over its own connection.
type Answer struct {
	FirstByte time.Duration // from before the connection was opened
	Status    int
	Body      string
}

// Ask opens a connection, sends one request, and times its first byte: from
// the client's SYN on.
func Ask(ctx context.Context, addr, host, path string) (Answer, error) {
	return ask(ctx, new(net.Dialer), addr, host, path)
}

func ask(ctx context.Context, dialer *net.Dialer, addr, host, path string) (Answer, error) {
	begin := time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return Answer{}, err
		}
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host); err != nil {
		return Answer{}, err
	}
	r := bufio.NewReader(conn)
	if _, err := r.Peek(1); err != nil {
		return Answer{}, err
	}
	a := Answer{FirstByte: time.Since(begin)}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	a.Status, a.Body = resp.StatusCode, strings.TrimSpace(string(body))
	return a, err
}

// knockEvery is how often a server that does not listen yet is tried: often
// enough to see the moment, seldom enough not to take its processor.
const knockEvery = 200 * time.Microsecond

// patience is how long one attempt may take: a link that comes up may also
// lose what was said on a connection.
const patience = 5 * time.Second

// starting reports whether a failure is one of a server that does not listen yet.
func starting(err error) bool {
	var dial *net.OpError
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout()
}

// FirstAnswer asks again and again until the server, which is just starting,
// answers. It is how a floor is timed: nobody tells it that the server is up.
func FirstAnswer(ctx context.Context, addr, path string) error {
	// While a link comes up it may lose a packet, which TCP would send again
	// only after a second.
	dialer := &net.Dialer{Timeout: 20 * time.Millisecond}
	for {
		once, cancel := context.WithTimeout(ctx, patience)
		a, err := ask(once, dialer, addr, "bench", path)
		cancel()
		switch {
		case err == nil && a.Status == http.StatusOK:
			return nil
		case err == nil:
			return fmt.Errorf("%s answered %d %q", addr, a.Status, a.Body)
		case ctx.Err() == nil && !starting(err):
			return fmt.Errorf("%s: %w", addr, err)
		}
		select {
		case <-time.After(knockEvery):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
