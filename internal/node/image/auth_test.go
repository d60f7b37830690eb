// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func basicAuth(user, password string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// tokenAuth hands out tokens at /token, as most registries do.
func tokenAuth(user, password string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}`)
				return
			}
			fmt.Fprintf(w, `{"token":"let-me-in"}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer let-me-in" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func pushAs(t testing.TB, ref, user, password string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img, remote.WithAuth(&authn.Basic{Username: user, Password: password})); err != nil {
		t.Fatal(err)
	}
}

func mustCreds(t testing.TB, secret string) Credentials {
	t.Helper()
	c, err := ParseDockerConfigJSON([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func toLoopback(dial func(context.Context, string, string) (net.Conn, error), port string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
}

func TestPullWithSecrets(t *testing.T) {
	for scheme, auth := range map[string]func(string, string, http.Handler) http.Handler{"basic": basicAuth, "token": tokenAuth} {
		t.Run(scheme, func(t *testing.T) {
			host := peer(t, func(h http.Handler) http.Handler { return auth("user", "secret", h) })
			pushAs(t, host+"/app:v1", "user", "secret", simpleImage(t, ent{name: "aa"}))
			right := fmt.Sprintf(`{"auths":{"http://%s":{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("user:secret")))
			wrong := fmt.Sprintf(`{"auths":{"%s/app":{"username":"user","password":"old"}}}`, host)
			s := newStore(t)
			for _, none := range []Credentials{{}, mustCreds(t, wrong), mustCreds(t, `{"auths":{"elsewhere.io":{"username":"user","password":"secret"}}}`)} {
				_, err := s.Pull(t.Context(), host+"/app:v1", none, nil)
				if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "pull access denied") {
					t.Errorf("got %v", err)
				}
				if strings.Contains(fmt.Sprint(err), "old") {
					t.Errorf("the password is in the error: %v", err)
				}
			}
			// The first login is wrong, the second right: both are tried.
			if _, err := s.Pull(t.Context(), host+"/app:v1", Join(mustCreds(t, wrong), mustCreds(t, right)), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	const secret = `{"auths":{
		"https://index.docker.io/v1/": {"username":"hub"},
		"gcr.io": {"username":"gcr"},
		"gcr.io/team": {"username":"team"},
		"gcr.io/team/app": {"username":"app"},
		"*.example.com": {"username":"wild"},
		"*.*.deep.com:5000/x": {"username":"deep"},
		"https://quay.io/v2/org": {"username":"org"},
		"http://127.0.0.1:5000/": {"username":"local"}
	}}`
	c := mustCreds(t, secret)
	tests := map[string][]string{
		"docker.io/library/nginx":      {"hub"},
		"gcr.io/other":                 {"gcr"},
		"gcr.io/team/web":              {"team", "gcr"},
		"gcr.io/team/app":              {"app", "team", "gcr"},
		"gcr.io/team/app2":             {"app", "team", "gcr"}, // a prefix, as Kubernetes has it
		"a.example.com/x":              {"wild"},
		"example.com/x":                nil,
		"a.b.example.com/x":            nil,
		"a.example.com:5000/x":         nil,
		"a.b.deep.com:5000/xyz":        {"deep"},
		"a.b.deep.com:5000/y":          nil,
		"quay.io/org/app":              {"org"},
		"quay.io/else":                 nil,
		"127.0.0.1:5000/hello":         {"local"},
		"gcr.io.evil.com/team/app":     nil,
		"evil.com/gcr.io/team/app":     nil,
		"index.docker.io/library/true": {"hub"},
	}
	for repo, want := range tests {
		var got []string
		for _, l := range c.For(repo) {
			got = append(got, l.Username)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", repo, got, want)
		}
	}
}

func TestLegacyAndBadSecrets(t *testing.T) {
	c, err := ParseDockerCfg([]byte(`{"https://quay.io":{"username":"u","password":"p","auth":"` + base64.RawStdEncoding.EncodeToString([]byte("a:b:c")) + `"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.For("quay.io/x"); len(got) != 1 || got[0].Username != "a" || got[0].Password != "b:c" {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{`{`, `[]`, `{"auths":3}`, `{"auths":{"x":{"auth":"!!"}}}`, `{"auths":{"x":{"auth":"bm9jb2xvbg=="}}}`} {
		if _, err := ParseDockerConfigJSON([]byte(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	if c, err := ParseDockerConfigJSON([]byte(`{"credsStore":"desktop"}`)); err != nil || len(c.entries) != 0 {
		t.Errorf("got %v, %v", c, err)
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add([]byte(`{"auths":{"gcr.io/x":{"auth":"YTpi"}}}`), "gcr.io/x")
	f.Add([]byte(`{"auths":{"*.[.io":{"username":"u"}}}`), "a.[.io")
	f.Fuzz(func(t *testing.T, secret []byte, repo string) {
		if c, err := ParseDockerConfigJSON(secret); err == nil {
			c.For(repo)
		}
	})
}
