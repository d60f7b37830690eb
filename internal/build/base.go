// SPDX-License-Identifier: Apache-2.0

package build

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ko "github.com/google/ko/pkg/build"
)

const (
	// staticName is what images say they stand on when they stand on nothing.
	staticName = "sonagi.local/static"

	// nonroot is the user that ko's usual base has.
	nonroot = "65532"

	certsFile = "/etc/ssl/certs/ca-certificates.crt"
	zonesFile = "/usr/share/zoneinfo.zip"

	passwdText = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"
	groupText  = "root:x:0:\nnobody:x:65534:\ntty:x:5:\nstaff:x:50:\nnonroot:x:65532:\n"
)

// hostCerts are where distributions keep the certificates they trust.
var hostCerts = []string{
	certsFile,                          // Debian, Arch, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt", // Fedora, RHEL
	"/etc/ssl/ca-bundle.pem",           // openSUSE
	"/etc/ssl/cert.pem",                // Alpine without the package, BSD
}

// staticBase is an image with what a static program may look for: users, a
// place for temporary files, trusted certificates and time zones.
func staticBase(platform v1.Platform) (name.Reference, ko.Result, error) {
	ref, err := name.ParseReference(staticName)
	if err != nil {
		return nil, nil, err
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	files := baseFiles()
	for _, f := range files {
		switch f.name {
		case certsFile:
			env = append(env, "SSL_CERT_FILE="+certsFile)
		case zonesFile:
			env = append(env, "ZONEINFO="+zonesFile)
		}
	}
	raw, err := tarOf(files)
	if err != nil {
		return nil, nil, fmt.Errorf("making base image: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, nil, fmt.Errorf("making base image: %w", err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "sonagi", Comment: "users, certificates, time zones"}})
	if err != nil {
		return nil, nil, fmt.Errorf("making base image: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, nil, fmt.Errorf("making base image: %w", err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Variant = platform.OS, platform.Architecture, platform.Variant
	cf.Config = v1.Config{User: nonroot, Env: env, WorkingDir: "/"}
	img, err = mutate.ConfigFile(img, cf)
	return ref, img, err
}

// file is an entry of the base's only layer.
type file struct {
	name string
	dir  bool
	mode int64
	uid  int
	body []byte
}

func baseFiles() []file {
	files := []file{
		{name: "/", dir: true, mode: 0o755},
		{name: "/etc", dir: true, mode: 0o755},
		{name: "/etc/passwd", mode: 0o644, body: []byte(passwdText)},
		{name: "/etc/group", mode: 0o644, body: []byte(groupText)},
		{name: "/etc/nsswitch.conf", mode: 0o644, body: []byte("hosts: files dns\n")},
		{name: "/home", dir: true, mode: 0o755},
		{name: "/home/nonroot", dir: true, mode: 0o700, uid: 65532},
		{name: "/root", dir: true, mode: 0o700},
		{name: "/tmp", dir: true, mode: 0o1777},
		{name: "/usr", dir: true, mode: 0o755},
		{name: "/usr/share", dir: true, mode: 0o755},
		{name: "/var", dir: true, mode: 0o755},
		{name: "/var/tmp", dir: true, mode: 0o1777},
	}
	if certs := readFirst(hostCerts); certs != nil {
		files = append(files,
			file{name: "/etc/ssl", dir: true, mode: 0o755}, file{name: "/etc/ssl/certs", dir: true, mode: 0o755},
			file{name: certsFile, mode: 0o644, body: certs})
	}
	if zones := readFirst([]string{filepath.Join(goroot(), "lib/time/zoneinfo.zip")}); zones != nil {
		files = append(files, file{name: zonesFile, mode: 0o644, body: zones})
	}
	return files
}

func goroot() string {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "/usr/local/go"
	}
	return strings.TrimSpace(string(out))
}

// maxHostFile keeps what is copied from this machine small.
const maxHostFile = 4 << 20

func readFirst(paths []string) []byte {
	for _, p := range paths {
		if info, err := os.Stat(p); err != nil || !info.Mode().IsRegular() || info.Size() > maxHostFile {
			continue
		}
		if b, err := os.ReadFile(p); err == nil && len(b) > 0 {
			return b
		}
	}
	return nil
}

// tarOf makes an archive that depends on nothing but the files.
func tarOf(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: strings.TrimPrefix(f.name, "/"), Mode: f.mode, Uid: f.uid, Gid: f.uid, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Size: int64(len(f.body))}
		if f.dir {
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
			if f.name == "/" {
				h.Name = "./"
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.body); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
