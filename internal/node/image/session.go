// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A session asks one registry about one repository, logged in or not.
type session struct {
	host    string
	path    string
	client  *http.Client
	backoff time.Duration
}

// maxRedirects is enough for registries that keep blobs elsewhere.
const maxRedirects = 5

// openSession finds out how the registry of ref is spoken to and logs in.
func (s *Store) openSession(ctx context.Context, ref Ref, login *Credential) (*session, error) {
	host := ref.Registry()
	if other, ok := s.opts.Aliases[host]; ok {
		host = other
	}
	plain := isLoopback(host) || s.insecure.has(host)
	var opts []name.Option
	base := s.secure
	if plain {
		opts, base = append(opts, name.Insecure), s.anyCertificate
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return nil, err
	}
	rt := &gate{inner: &stallGuard{inner: base, limit: s.opts.Stall}, host: host, plain: s.insecure}
	auth := authn.Anonymous
	if login != nil {
		auth = authn.FromConfig(authn.AuthConfig{
			Username: login.Username, Password: login.Password,
			IdentityToken: login.IdentityToken, RegistryToken: login.RegistryToken,
		})
	}
	se := &session{host: reg.RegistryStr(), path: ref.Path(), backoff: s.backoff}
	scope := reg.Repo(ref.Path()).Scope(transport.PullScope)
	err = se.retry(ctx, func() error {
		t, err := transport.NewWithContext(ctx, reg, auth, transport.NewUserAgent(rt, "sonagi"), []string{scope})
		se.client = &http.Client{Transport: t, CheckRedirect: checkRedirect}
		return err
	})
	return se, err
}

func checkRedirect(_ *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	return nil
}

// manifestTypes are what this machine can make an image of.
var manifestTypes = []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex, types.DockerManifestList}

// manifest gets a manifest or an index, and says by itself what it is: the
// bytes decide over the registry's header.
func (se *session) manifest(ctx context.Context, identifier string) ([]byte, error) {
	accept := make([]string, len(manifestTypes))
	for i, t := range manifestTypes {
		accept[i] = string(t)
	}
	var claimed string
	b, err := se.small(ctx, "manifests/"+identifier, maxManifest, func(r *http.Request) {
		r.Header.Set("Accept", strings.Join(accept, ","))
	}, func(h http.Header) { claimed = h.Get("Docker-Content-Digest") })
	if err != nil {
		return nil, err
	}
	got := digestOf(b)
	if strings.HasPrefix(identifier, sha256Prefix) {
		claimed = identifier
	}
	if strings.HasPrefix(claimed, sha256Prefix) && claimed != got {
		return nil, fmt.Errorf("%w: manifest %s arrived as %s", ErrCorrupt, claimed, got)
	}
	return b, nil
}

const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
)

// smallBlob gets a blob that is kept in memory.
func (se *session) smallBlob(ctx context.Context, digest string, max int64) ([]byte, error) {
	b, err := se.small(ctx, "blobs/"+digest, max, nil, nil)
	if err != nil {
		return nil, err
	}
	if got := digestOf(b); got != digest {
		return nil, fmt.Errorf("%w: blob %s arrived as %s", ErrCorrupt, digest, got)
	}
	return b, nil
}

func (se *session) small(ctx context.Context, what string, max int64, set func(*http.Request), seen func(http.Header)) (body []byte, err error) {
	err = se.retry(ctx, func() error {
		resp, err := se.get(ctx, what, set)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if seen != nil {
			seen(resp.Header)
		}
		body, err = io.ReadAll(io.LimitReader(resp.Body, max+1))
		if int64(len(body)) > max {
			return fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, what, max)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("registry sends only %d of %d bytes of %s: %w", len(body), resp.ContentLength, what, err)
		}
		return err
	})
	return body, err
}

// get asks for something in the repository. The scheme is set right further down.
func (se *session) get(ctx context.Context, what string, set func(*http.Request)) (*http.Response, error) {
	u := url.URL{Scheme: "https", Host: se.host, Path: "/v2/" + se.path + "/" + what}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if set != nil {
		set(req)
	}
	resp, err := se.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, &answer{err: err, after: retryAfter(resp)}
	}
	return resp, nil
}

// An answer is a registry's refusal, with what it says of when to come again.
type answer struct {
	err   error
	after time.Duration
}

func (a *answer) Error() string { return a.err.Error() }
func (a *answer) Unwrap() error { return a.err }

func retryAfter(resp *http.Response) time.Duration {
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 3600)) * time.Second
}

const (
	maxTries = 4 // in a row without any progress
	// maxWait is the longest wait that a registry may ask for here. The pod's own
	// back-off, which people can see, takes longer ones.
	maxWait = 5 * time.Second
)

// retry does something up to maxTries times while what fails may pass.
func (se *session) retry(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try >= maxTries || !passing(err, try) {
			return err
		}
		if !se.pause(ctx, try, err) {
			return err
		}
	}
}

// passing reports whether an error may be gone at the next try.
func passing(err error, try int) bool {
	if errors.Is(err, ErrTimeout) {
		return try == 1 // each try of a registry that hangs takes long
	}
	if errors.Is(err, ErrInsecure) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge) || errors.Is(err, context.Canceled) {
		return false
	}
	if e := new(transport.Error); errors.As(err, &e) {
		switch e.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// pause waits before the next try, longer each time, or as long as the
// registry asks. It reports whether there is a next try.
func (se *session) pause(ctx context.Context, try int, err error) bool {
	wait := se.backoff << (try - 1)
	wait += rand.N(wait/2 + 1)
	if a := new(answer); errors.As(err, &a) && a.after > 0 {
		wait = a.after
	}
	if wait > maxWait {
		return false
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// explain gives an error of the registry its kind and keeps the registry's
// words, as a person reads them in a pod's status.
func explain(err error) error {
	if e := new(transport.Error); errors.As(err, &e) {
		return fmt.Errorf("%w: %s", kindOf(e.StatusCode), words(e))
	}
	if e := new(url.Error); errors.As(err, &e) && errors.Is(e.Err, ErrTimeout) {
		err = e.Err
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: registry closed the connection: %w", ErrUnavailable, err)
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") && !errors.Is(err, ErrInsecure) {
		err = fmt.Errorf("%w; %w: it is not a loopback address, and not set as insecure", err, ErrInsecure)
	}
	return err
}

func kindOf(status int) error {
	switch {
	case status == http.StatusNotFound:
		return ErrNotFound
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("pull access denied, repository does not exist or may require authorization: %w", ErrUnauthorized)
	case status == http.StatusTooManyRequests, status >= 500:
		return ErrUnavailable
	}
	return errors.New("unexpected answer")
}

// words is what the registry said, in one line of bounded length.
func words(e *transport.Error) string {
	said := e.Error()
	if e.Request != nil {
		if _, after, ok := strings.Cut(said, e.Request.URL.Path+": "); ok {
			said = after
		} else if _, after, ok := strings.Cut(said, ": "); ok && strings.HasPrefix(said, e.Request.Method) {
			said = strings.TrimPrefix(after, "//")
		}
	}
	said = strings.Join(strings.FieldsFunc(said, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if status := strconv.Itoa(e.StatusCode); !strings.Contains(said, status) {
		said += " (" + status + " " + http.StatusText(e.StatusCode) + ")"
	}
	return clip(said, 512)
}
