// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
)

// lie answers some requests in place of the registry.
type lie func(w http.ResponseWriter, r *http.Request, truth http.Handler) (lied bool)

func liar(t testing.TB, l lie) string {
	return peer(t, func(truth http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !l(w, r, truth) {
				truth.ServeHTTP(w, r)
			}
		})
	})
}

// body is what the truth would have sent.
func body(r *http.Request, truth http.Handler) (http.Header, []byte) {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	rec := httptest.NewRecorder()
	truth.ServeHTTP(rec, r)
	return rec.Header(), rec.Body.Bytes()
}

func TestRegistryThatLiesOrHangs(t *testing.T) {
	layer := layerOf(t, compression.GZip, tarOf(t, ent{name: "aa", body: strings.Repeat("payload ", 1<<14)}))
	layerDigest, _ := layer.Digest()
	isLayer := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/blobs/"+layerDigest.String()) }
	isManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	fail := func(status int, body string) lie {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isManifest(r) {
				w.WriteHeader(status)
				io.WriteString(w, body)
			}
			return isManifest(r)
		}
	}
	tests := []struct {
		name string
		lie  lie
		kind error
		says string
	}{
		{"layer of other bytes", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if !isLayer(r) {
				return false
			}
			_, b := body(r, truth)
			b[len(b)/2] ^= 1
			w.Write(b)
			return true
		}, ErrCorrupt, ""},
		{"valid layer of other content", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if !isLayer(r) {
				return false
			}
			_, b := body(r, truth)
			var z bytes.Buffer
			g := gzip.NewWriter(&z)
			g.Write(tarOf(t, ent{name: "evil", body: "evil"}))
			g.Close()
			w.Write(append(z.Bytes(), make([]byte, len(b)-z.Len())...))
			return true
		}, ErrCorrupt, ""},
		{"truncated layer", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if !isLayer(r) {
				return false
			}
			_, b := body(r, truth)
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b[:len(b)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ErrCorrupt, "registry sends only"},
		{"connection that is closed", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if isLayer(r) {
				panic(http.ErrAbortHandler)
			}
			return false
		}, ErrUnavailable, "registry closed the connection"},
		{"layer of another length", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if isLayer(r) {
				io.WriteString(w, "short")
			}
			return isLayer(r)
		}, ErrCorrupt, ": content is not what its digest says: registry has 5 bytes, the manifest says 850"},
		{"layer that stops coming", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if !isLayer(r) {
				return false
			}
			_, b := body(r, truth)
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, ErrTimeout, "sent nothing for 100ms"},
		{"layer that drips", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if !isLayer(r) {
				return false
			}
			_, b := body(r, truth)
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			for i := range b {
				select {
				case <-time.After(5 * time.Millisecond):
				case <-r.Context().Done():
					return true
				}
				w.Write(b[i : i+1])
				w.(http.Flusher).Flush()
			}
			return true
		}, ErrTimeout, "sent nothing for 100ms"},
		{"no answer", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isManifest(r) {
				<-r.Context().Done()
			}
			return isManifest(r)
		}, ErrTimeout, "sent nothing for 100ms"},
		{"manifest of other bytes", func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
			if !isManifest(r) {
				return false
			}
			h, b := body(r, truth)
			w.Header().Set("Docker-Content-Digest", h.Get("Docker-Content-Digest"))
			w.Write(append(b, ' '))
			return true
		}, ErrCorrupt, "arrived as"},
		{"manifest without end", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isManifest(r) {
				for range maxManifest/1024 + 1 {
					w.Write(make([]byte, 1024))
				}
			}
			return isManifest(r)
		}, ErrTooLarge, ""},
		{"page of words", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isManifest(r) {
				io.WriteString(w, "<html>log in</html>")
			}
			return isManifest(r)
		}, ErrCorrupt, "not JSON"},
		{"401", fail(401, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`), ErrUnauthorized,
			"pull access denied, repository does not exist or may require authorization: not authorized: UNAUTHORIZED: authentication required (401 Unauthorized)"},
		{"403", fail(403, `{"errors":[{"code":"DENIED","message":"your plan has ended"}]}`), ErrUnauthorized, "DENIED: your plan has ended"},
		{"404", fail(404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`), ErrNotFound, "not found: MANIFEST_UNKNOWN: manifest unknown"},
		{"429", fail(429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`), ErrUnavailable, "TOOMANYREQUESTS: You have reached your pull rate limit."},
		{"500", fail(500, "upstream\x1b[31m\nis\ton fire"), ErrUnavailable, "500 Internal Server Error: upstream [31m is on fire"},
		{"redirect in a circle", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isLayer(r) {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			}
			return isLayer(r)
		}, nil, "stopped after 5 redirects"},
		{"redirect to plain HTTP elsewhere", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isLayer(r) {
				http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusTemporaryRedirect)
			}
			return isLayer(r)
		}, ErrInsecure, "plain HTTP is not allowed for 169.254.169.254"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := liar(t, tt.lie)
			push(t, host+"/team/app:v1", imageOf(t, layer))
			s := newStore(t, func(o *Options) { o.Stall = 100 * time.Millisecond })
			_, err := s.Pull(t.Context(), host+"/team/app:v1", Credentials{}, nil)
			if err == nil {
				t.Fatal("the image was pulled")
			}
			if tt.kind != nil && !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
			if want := fmt.Sprintf("failed to pull image %q: ", host+"/team/app:v1"); !strings.HasPrefix(err.Error(), want) || ReasonOf(err) != ReasonPull {
				t.Errorf("got %v", err)
			}
			t.Log(err)
			nothingLeft(t, s)
		})
	}
}

// TestPullResumes: a connection that breaks again and again costs no byte twice.
func TestPullResumes(t *testing.T) {
	for _, how := range []string{"sent", "ignored", "refused"} {
		t.Run("ranges "+how, func(t *testing.T) {
			ranges := how == "sent"
			random := make([]byte, 200<<10)
			for i, x := 0, uint32(1); i < len(random); i++ {
				x ^= x << 13
				x ^= x >> 17
				x ^= x << 5
				random[i] = byte(x)
			}
			layer := layerOf(t, compression.GZip, tarOf(t, ent{name: "aa", body: string(random)}))
			digest, _ := layer.Digest()
			var sent, asked atomic.Int64
			host := liar(t, func(w http.ResponseWriter, r *http.Request, truth http.Handler) bool {
				if !strings.HasSuffix(r.URL.Path, digest.String()) {
					return false
				}
				from := 0
				rng := r.Header.Get("Range")
				if rng != "" && how == "refused" {
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
					return true
				}
				_, b := body(r, truth)
				if rng != "" && ranges {
					from, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rng, "bytes="), "-"))
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(b)-from))
				if from > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				upTo := min(len(b), from+50<<10)
				if !ranges {
					upTo = min(len(b), int(asked.Load()+1)*50<<10)
				}
				asked.Add(1)
				sent.Add(int64(upTo - from))
				w.Write(b[from:upTo])
				if upTo < len(b) {
					panic(http.ErrAbortHandler)
				}
				return true
			})
			push(t, host+"/app:v1", imageOf(t, layer))
			s := newStore(t)
			img := mustPull(t, s, host+"/app:v1")
			if root := mustMount(t, s, img, "c1"); read(t, root, "aa") != string(random) {
				t.Error("the file is not what was pushed")
			}
			if size, _ := layer.Size(); ranges && sent.Load() != size {
				t.Errorf("%d bytes were sent of %d, in %d parts", sent.Load(), size, asked.Load())
			}
		})
	}
}

// TestPullRetries: a registry that is busy is asked again, when it says so.
func TestPullRetries(t *testing.T) {
	var asked atomic.Int64
	host := liar(t, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || asked.Add(1) > 2 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	push(t, host+"/app:v1", simpleImage(t, ent{name: "aa"}))
	mustPull(t, newStore(t), host+"/app:v1")
}

// TestRedirectElsewhere: blobs may lie on another host, which is given no login.
func TestRedirectElsewhere(t *testing.T) {
	var blobs http.Handler
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the login was sent to another host")
		}
		blobs.ServeHTTP(w, r)
	}))
	defer elsewhere.Close()
	other := strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)
	host := peer(t, func(truth http.Handler) http.Handler {
		blobs = truth
		return basicAuth("user", "secret", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				http.Redirect(w, r, other+r.URL.Path, http.StatusTemporaryRedirect)
				return
			}
			truth.ServeHTTP(w, r)
		}))
	})
	pushAs(t, host+"/app:v1", "user", "secret", simpleImage(t, ent{name: "aa"}))
	creds := mustCreds(t, fmt.Sprintf(`{"auths":{%q:{"username":"user","password":"secret"}}}`, host))
	if _, err := newStore(t).Pull(t.Context(), host+"/app:v1", creds, nil); err != nil {
		t.Error(err)
	}
}

// TestGate: what would leave TLS, or reach this machine's own services, is
// refused before a byte is sent.
func TestGate(t *testing.T) {
	tests := []struct {
		registry, url string
		insecure      []string
		allowed       bool
	}{
		{"docker.io", "https://docker.io/v2/", nil, true},
		{"docker.io", "https://cdn.example.com/blob", nil, true},
		{"docker.io", "http://cdn.example.com/blob", nil, false},
		{"docker.io", "http://127.0.0.1:10250/pods", nil, false},
		{"docker.io", "https://127.0.0.1:10250/pods", nil, false},
		{"docker.io", "https://[::1]:6443/", nil, false},
		{"docker.io", "http://10.0.0.1/", nil, false},
		{"10.0.0.1:5000", "http://10.0.0.1:5000/v2/", nil, false},
		{"10.0.0.1:5000", "http://10.0.0.1:5000/v2/", []string{"10.0.0.1:5000"}, true},
		{"10.0.0.1:5000", "http://10.0.0.1:5000/v2/", []string{"10.0.0.0/8"}, true},
		{"10.0.0.1:5000", "http://10.0.0.1:5000/v2/", []string{"10.0.0.1"}, true},
		{"10.0.0.1:5000", "http://10.0.0.1:5000/v2/", []string{"10.0.0.1:5001"}, false},
		{"reg.local", "http://reg.local/v2/", nil, false},
		{"reg.local", "http://REG.local/v2/", []string{"Reg.Local"}, true},
		{"127.0.0.1:5000", "http://127.0.0.1:5000/v2/", nil, true},
		{"localhost:5000", "http://localhost:5000/v2/", nil, true},
		{"[::1]:5000", "http://[::1]:5000/v2/", nil, true},
		{"localhost.evil.com", "http://localhost.evil.com/v2/", nil, false},
		{"127.0.0.1.evil.com", "http://127.0.0.1.evil.com/v2/", nil, false},
		{"[::ffff:127.0.0.1]:5000", "http://[::ffff:127.0.0.1]:5000/v2/", nil, true},
		{"docker.io", "file:///etc/shadow", nil, false},
	}
	for _, tt := range tests {
		g := &gate{inner: nowhere{}, host: tt.registry, plain: newInsecureHosts(tt.insecure)}
		req, err := http.NewRequest(http.MethodGet, tt.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = g.RoundTrip(req)
		if allowed := !errors.Is(err, ErrInsecure); allowed != tt.allowed {
			t.Errorf("%s sends to %s (insecure %v): allowed %v", tt.registry, tt.url, tt.insecure, allowed)
		}
	}
}

type nowhere struct{}

func (nowhere) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.EOF }

// TestPlainRegistry: a registry on a private address that speaks plain HTTP is
// named in the error, with what to do.
func TestPlainRegistry(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	s := newStore(t)
	s.opts.Aliases = map[string]string{}
	dial := s.secure.DialContext
	s.secure.DialContext = toLoopback(dial, port)
	for _, host := range []string{"10.255.1.1:" + port, "reg.example.com:" + port} {
		_, err := s.Pull(t.Context(), host+"/app:v1", Credentials{}, nil)
		if !errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), "HTTP response to HTTPS client") {
			t.Errorf("got %v", err)
		}
	}
}
