// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ko "github.com/google/ko/pkg/build"
)

// compile builds a program and puts it on its base.
func compile(ctx context.Context, o Options, program string) (v1.Image, error) {
	platform, err := v1.ParsePlatform(o.Platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w", o.Platform, err)
	}
	src := examine(ctx, o.Dir)
	opts := []ko.Option{
		ko.WithBaseImages(func(ctx context.Context, _ string) (name.Reference, ko.Result, error) { return base(ctx, o, *platform) }),
		ko.WithPlatforms(o.Platform),
		ko.WithTrimpath(true),
		// The stamp of version control would need a repository that its owner may
		// read, and makes another image of the same source.
		ko.WithDefaultFlags([]string{"-buildvcs=false"}),
		ko.WithDefaultLdflags([]string{"-s -w"}),
		// After the user's environment, whose GOOS may be this machine's.
		ko.WithDefaultEnv([]string{"CGO_ENABLED=0", "GOOS=" + platform.OS, "GOARCH=" + platform.Architecture}),
		ko.WithCreationTime(v1.Time{Time: src.time}),
		ko.WithKoDataCreationTime(v1.Time{Time: src.time}),
		ko.WithLabel("org.opencontainers.image.title", path.Base(program)),
		ko.WithDisabledSBOM(),
	}
	if src.revision != "" {
		opts = append(opts, ko.WithLabel("org.opencontainers.image.revision", src.revision))
	}
	builder, err := ko.NewGo(ctx, o.Dir, opts...)
	if err != nil {
		return nil, fmt.Errorf("preparing to build %s: %w", program, err)
	}
	result, err := buildQuietly(ctx, builder, ko.StrictScheme+program)
	if err != nil {
		return nil, explain(ctx, err)
	}
	img, ok := result.(v1.Image)
	if !ok {
		return nil, fmt.Errorf("building %s gave %T, not one image", program, result)
	}
	return img, nil
}

// standardLog is held while ko, which talks through the standard logger, is at
// work: its lines are not for the person who waits.
var standardLog sync.Mutex

func buildQuietly(ctx context.Context, b ko.Interface, ref string) (ko.Result, error) {
	standardLog.Lock()
	defer standardLog.Unlock()
	was := log.Writer()
	log.SetOutput(io.Discard)
	defer log.SetOutput(was)
	return b.Build(ctx, ref)
}

// explain keeps the compiler's own words.
func explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_, said, ok := strings.Cut(err.Error(), "go build: ")
	if !ok {
		return fmt.Errorf("building: %w", err)
	}
	if _, output, ok := strings.Cut(said, ": "); ok && strings.HasPrefix(said, "exit status") {
		said = output
	}
	return fmt.Errorf("%w:\n%s", ErrCompile, strings.TrimSpace(said))
}

// source is what is known of where a program comes from.
type source struct {
	time     time.Time
	revision string // empty when the source is not exactly that
}

// examine asks git. Its time, not the clock's, goes into the image: the clock
// would make another image each time.
func examine(ctx context.Context, dir string) source {
	src := source{time: time.Unix(0, 0).UTC()}
	if said, err := git(ctx, dir, "log", "-1", "--format=%ct %H"); err == nil {
		when, revision, _ := strings.Cut(said, " ")
		if sec, err := strconv.ParseInt(when, 10, 64); err == nil {
			src.time = time.Unix(sec, 0).UTC()
		}
		if changed, err := git(ctx, dir, "status", "--porcelain", "--", "."); err == nil && changed == "" {
			src.revision = revision
		}
	}
	if sec, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		src.time = time.Unix(sec, 0).UTC()
	}
	return src
}

// gitPatience is how long git may take to say what is only nice to know.
const gitPatience = 5 * time.Second

func git(ctx context.Context, dir string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitPatience)
	defer cancel()
	// A repository's own settings must not run programs.
	args = append([]string{"-C", dir, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"}, args...)
	out, err := exec.CommandContext(ctx, "git", args...).Output()
	return strings.TrimSpace(string(out)), err
}

// base is what the program is put on.
func base(ctx context.Context, o Options, platform v1.Platform) (name.Reference, ko.Result, error) {
	if o.Base == "" {
		return staticBase(platform)
	}
	ref, err := name.ParseReference(o.Base)
	if err != nil {
		return nil, nil, fmt.Errorf("base image: %w", err)
	}
	o.Progress("fetching base image " + ref.Name())
	img, err := remote.Image(ref, remoteOptions(ctx, remote.WithPlatform(platform))...)
	if err != nil {
		return nil, nil, fmt.Errorf("base image %s: %w", ref, err)
	}
	return ref, img, nil
}

func remoteOptions(ctx context.Context, more ...remote.Option) []remote.Option {
	return append(more, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(tlsOnly{remote.DefaultTransport}))
}

// tlsOnly keeps requests on TLS, except on this machine: the registry client
// by itself would speak plain HTTP to any private address.
type tlsOnly struct{ inner http.RoundTripper }

func (t tlsOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !isLoopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("plain HTTP is not allowed for %s", r.URL.Host)
	}
	return t.inner.RoundTrip(r)
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// push writes the image to its repository and gives its name by digest.
func push(ctx context.Context, o Options, img v1.Image) (string, error) {
	repo, err := name.NewRepository(o.Repository)
	if err != nil {
		return "", fmt.Errorf("pushing to %q: %w", o.Repository, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("pushing to %s: %w", repo, err)
	}
	ref := repo.Name() + "@" + digest.String()
	o.Progress("pushing " + repo.Tag(o.Tag).Name())
	if err := remote.Write(repo.Tag(o.Tag), img, remoteOptions(ctx)...); err != nil {
		if e := new(net.OpError); errors.As(err, &e) && e.Op == "dial" {
			return "", fmt.Errorf("the registry at %s does not answer: is `sonagi up` running? (%w)", repo.RegistryStr(), err)
		}
		return "", fmt.Errorf("pushing to %s: %w", repo, err)
	}
	o.Progress("pushed " + ref)
	return ref, nil
}
