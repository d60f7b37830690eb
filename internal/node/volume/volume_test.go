// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/internal/node/pod"
)

const insideEnv = "SONAGI_TEST_HOST"

// TestMain runs the tests in a mount namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(max(1, exit.ExitCode()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// objects is an API in memory.
type objects struct {
	mu     sync.Mutex
	maps   map[string]*corev1.ConfigMap
	secret map[string]*corev1.Secret
	claims map[string]*corev1.PersistentVolumeClaim
	pvs    map[string]*corev1.PersistentVolume
	tokens int
	fail   error // of tokens
	asked  *authenticationv1.TokenRequest
	now    func() time.Time
}

func get[T any](o *objects, from map[string]*T, kind, name string) (*T, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if v, ok := from[name]; ok {
		return v, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource(kind), name)
}

func (o *objects) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	return get(o, o.maps, "configmaps", name)
}

func (o *objects) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	return get(o, o.secret, "secrets", name)
}

func (o *objects) Claim(_ context.Context, _, name string) (*corev1.PersistentVolumeClaim, error) {
	return get(o, o.claims, "persistentvolumeclaims", name)
}

func (o *objects) Volume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	return get(o, o.pvs, "persistentvolumes", name)
}

func (o *objects) Token(_ context.Context, _, _ string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail != nil {
		return nil, o.fail
	}
	o.tokens++
	o.asked = r
	return &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
		Token: fmt.Sprint("token", o.tokens), ExpirationTimestamp: metav1.NewTime(o.now().Add(time.Hour)),
	}}, nil
}

type bench struct {
	*testing.T
	m     *Manager
	api   *objects
	clock time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("mounts need root")
	}
	b := &bench{T: t, clock: time.Unix(1_700_000_000, 0)}
	now := func() time.Time { return b.clock }
	b.api = &objects{maps: map[string]*corev1.ConfigMap{}, secret: map[string]*corev1.Secret{}, claims: map[string]*corev1.PersistentVolumeClaim{}, pvs: map[string]*corev1.PersistentVolume{}, now: now}
	b.m = b.open(t.TempDir())
	t.Cleanup(func() { b.must(Unmount(b.m.o.Dir)) })
	return b
}

func (b *bench) open(dir string) *Manager {
	m, err := Open(Options{Dir: dir, Objects: b.api, Sources: func(p *corev1.Pod) pod.Sources { return pod.Sources{Pod: p, PodIP: "10.0.0.1"} }, Now: func() time.Time { return b.clock }})
	b.must(err)
	return m
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func onePod(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid-1", Labels: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{Volumes: volumes}}
}

func (b *bench) fill(p *corev1.Pod) (*Pod, time.Time) {
	b.Helper()
	v, err := b.m.Pod(p)
	b.must(err)
	again, err := v.Fill(b.Context(), p)
	b.must(err)
	return v, again
}

// tree lists a volume as a container sees it.
func tree(dir string) map[string]string {
	out := map[string]string{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		if strings.HasPrefix(rel, "..") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			for k, v := range tree(path + "/") {
				out[rel+"/"+k] = v
			}
			return nil
		}
		text, _ := os.ReadFile(path)
		info, _ := os.Stat(path)
		out[rel] = fmt.Sprintf("%s %o", text, info.Mode().Perm())
		return nil
	})
	return out
}

func equal(t *testing.T, got, want map[string]string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFilesFromObjects(t *testing.T) {
	b := newBench(t)
	yes, octal, own := true, int32(0o640), int32(0o400)
	b.api.maps["m"] = &corev1.ConfigMap{Data: map[string]string{"k": "v", "l": "w"}, BinaryData: map[string][]byte{"b": {1}}}
	b.api.secret["s"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("secret")}}
	ref := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	cm := func(c corev1.ConfigMapVolumeSource) corev1.VolumeSource {
		return corev1.VolumeSource{ConfigMap: &c}
	}
	for name, tt := range map[string]struct {
		source corev1.VolumeSource
		want   map[string]string
		err    string
	}{
		"config map": {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m")}), map[string]string{"k": "v 644", "l": "w 644", "b": "\x01 644"}, ""},
		"items and modes": {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), DefaultMode: &octal, Items: []corev1.KeyToPath{{Key: "k", Path: "d/e/f"}, {Key: "l", Path: "d/g", Mode: &own}}}),
			map[string]string{"d/e/f": "v 640", "d/g": "w 400"}, ""},
		"no such key":          {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), Items: []corev1.KeyToPath{{Key: "x", Path: "x"}}}), nil, `MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: x`},
		"no such key, but":     {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), Optional: &yes, Items: []corev1.KeyToPath{{Key: "x", Path: "x"}}}), map[string]string{}, ""},
		"no such map":          {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("x")}), nil, `MountVolume.SetUp failed for volume "v" : configmaps "x" not found`},
		"no such map, but":     {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("x"), Optional: &yes}), map[string]string{}, ""},
		"path out of it":       {cm(corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), Items: []corev1.KeyToPath{{Key: "k", Path: "../x"}}}), nil, `MountVolume.SetUp failed for volume "v" : invalid path "../x" in volume`},
		"secret":               {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: &own}}, map[string]string{"k": "secret 400"}, ""},
		"no such secret's key": {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", Items: []corev1.KeyToPath{{Key: "x", Path: "x"}}}}, nil, `MountVolume.SetUp failed for volume "v" : references non-existent secret key: x`},
		"fields": {corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
			map[string]string{"labels": `a="b" 644`}, ""},
		"all together": {corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: &octal, Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("m"), Items: []corev1.KeyToPath{{Key: "k", Path: "x"}}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: ref("s"), Items: []corev1.KeyToPath{{Key: "k", Path: "y/z"}}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "ip", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}},
		}}}, map[string]string{"x": "v 640", "y/z": "secret 640", "token": "token1 640", "ip": "10.0.0.1 640"}, ""},
		"nobody knows it": {corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}, nil, `MountVolume.SetUp failed for volume "v" : no volume plugin matched`},
	} {
		t.Run(name, func(t *testing.T) {
			p := onePod(corev1.Volume{Name: "v", VolumeSource: tt.source})
			v, err := b.m.Pod(p)
			b.must(err)
			if _, err = v.Fill(t.Context(), p); fmt.Sprint(err) != tt.err && !(err == nil && tt.err == "") {
				t.Errorf("got %v, want %s", err, tt.err)
			}
			if tt.err == "" {
				equal(t, tree(v.Path("v")), tt.want)
			}
			b.must(b.m.Remove(p.UID))
			if left, _ := b.m.Pods(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestUpdates(t *testing.T) {
	b := newBench(t)
	b.api.maps["m"] = &corev1.ConfigMap{Data: map[string]string{"a": "1", "old": "x"}}
	p := onePod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}}})
	v, _ := b.fill(p)
	data := func() string { l, _ := os.Readlink(v.Path("v") + "/..data"); return l }
	first := data()
	b.fill(p)
	if data() != first {
		t.Error("what has not changed was written again")
	}
	open, err := os.Open(v.Path("v") + "/a")
	b.must(err)
	defer open.Close()
	b.api.maps["m"] = &corev1.ConfigMap{Data: map[string]string{"a": "2", "new": "y"}}
	b.clock = b.clock.Add(time.Second)
	b.fill(p)
	equal(t, tree(v.Path("v")), map[string]string{"a": "2 644", "new": "y 644"})
	if entries, _ := os.ReadDir(v.Path("v")); len(entries) != 4 {
		t.Errorf("the directory has %v", entries)
	}
	if data() == first {
		t.Error("the files were changed in place")
	}
}

func TestTokens(t *testing.T) {
	b := newBench(t)
	seconds := int64(3600)
	p := onePod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault", ExpirationSeconds: &seconds}},
	}}}})
	group, user := int64(3000), int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group, RunAsUser: &user}
	p.Spec.Containers = []corev1.Container{{Name: "c"}}
	v, again := b.fill(p)
	if r := b.api.asked.Spec; r.BoundObjectRef.UID != p.UID || r.Audiences[0] != "vault" || *r.ExpirationSeconds != 3600 {
		t.Errorf("asked for %+v", r)
	}
	var st unix.Stat_t
	b.must(unix.Stat(v.Path("v")+"/token", &st))
	if st.Mode&0o777 != 0o640 || st.Uid != 1000 || st.Gid != 3000 {
		t.Errorf("mode %o, owner %d:%d", st.Mode&0o777, st.Uid, st.Gid)
	}
	if wait := again.Sub(b.clock); wait > 48*time.Minute || wait < 44*time.Minute {
		t.Errorf("refreshed after %s", wait)
	}
	b.fill(p)
	b.clock = b.clock.Add(50 * time.Minute)
	b.api.fail = errors.New("no")
	if _, again := b.fill(p); again.Sub(b.clock) != 10*time.Second {
		t.Errorf("tried again after %s", again.Sub(b.clock))
	}
	equal(t, tree(v.Path("v")), map[string]string{"token": "token1 640"})
	b.api.fail = nil
	b.clock = b.clock.Add(11 * time.Second)
	b.fill(p)
	equal(t, tree(v.Path("v")), map[string]string{"token": "token2 640"})
}

func TestEmptyDir(t *testing.T) {
	b := newBench(t)
	size := resource.MustParse("2Mi")
	p := onePod(
		corev1.Volume{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}},
		corev1.Volume{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}},
	)
	group := int64(3000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	v, _ := b.fill(p)
	for _, name := range []string{"disk", "mem"} {
		info, err := os.Stat(v.Path(name))
		b.must(err)
		if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o777 || info.Mode()&fs.ModeSetgid == 0 || st.Gid != 3000 {
			t.Errorf("%s has mode %s, group %d", name, info.Mode(), st.Gid)
		}
		b.must(os.WriteFile(v.Path(name)+"/f", make([]byte, 1<<20), 0o644))
	}
	if err := os.WriteFile(v.Path("mem")+"/g", make([]byte, 2<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	again := b.open(b.m.o.Dir) // a new process finds all as it was
	w, err := again.Pod(p)
	b.must(err)
	if _, err := os.Stat(w.Path("mem") + "/f"); err != nil {
		t.Error(err)
	}
	use, err := w.Usage(t.Context(), p)
	b.must(err)
	if len(use) != 2 || use[0].Bytes < 1<<20 || use[0].Memory || use[1].Bytes != 2<<20 || !use[1].Memory || use[1].Limit != 2<<20 {
		t.Errorf("usage is %+v", use)
	}
	b.must(again.Remove(p.UID))
	if left, _ := mountsBelow(b.m.Dir(p.UID)); len(left) > 0 {
		t.Errorf("mounts left: %v", left)
	}
}

func TestHostPath(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	b.must(os.WriteFile(file, nil, 0o644))
	for _, tt := range []struct {
		path string
		kind corev1.HostPathType
		err  string
	}{
		{dir, corev1.HostPathUnset, ""}, {dir + "/unset", corev1.HostPathUnset, ""},
		{dir, corev1.HostPathDirectory, ""}, {file, corev1.HostPathDirectory, "is not a directory"}, {dir + "/x", corev1.HostPathDirectory, "is not a directory"},
		{dir + "/made", corev1.HostPathDirectoryOrCreate, ""}, {file, corev1.HostPathFile, ""}, {dir, corev1.HostPathFile, "is not a file"},
		{dir + "/newfile", corev1.HostPathFileOrCreate, ""}, {dir, corev1.HostPathFileOrCreate, "is not a file"},
		{"/dev/null", corev1.HostPathCharDev, ""}, {file, corev1.HostPathCharDev, "is not a character device"},
		{file, corev1.HostPathBlockDev, "is not a block device"}, {file, corev1.HostPathSocket, "is not a socket file"},
	} {
		p := onePod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: tt.path, Type: &tt.kind}}})
		v, err := b.m.Pod(p)
		b.must(err)
		_, err = v.Fill(t.Context(), p)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.path+" "+tt.err)) {
			t.Errorf("%s %s: got %v", tt.kind, tt.path, err)
		}
		if tt.err == "" && v.Path("v") != tt.path {
			t.Errorf("path is %s", v.Path("v"))
		}
	}
}

func TestClaim(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	b.api.claims["c"] = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{UID: "cu"}}
	p := onePod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}})
	v, err := b.m.Pod(p)
	b.must(err)
	expect := func(want string) {
		t.Helper()
		if _, err := v.Fill(t.Context(), p); err == nil && want != "" || err != nil && !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	expect("PVC ns/c is not bound")
	b.api.claims["c"].Spec.VolumeName, b.api.claims["c"].Status.Phase = "pv", corev1.ClaimBound
	expect(`"pv" not found`)
	b.api.pvs["pv"] = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
		ClaimRef: &corev1.ObjectReference{UID: "other"}, PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}}}}
	expect("PV pv is not bound to PVC ns/c")
	b.api.pvs["pv"].Spec.ClaimRef.UID = "cu"
	expect("")
	if v.Path("v") != dir {
		t.Errorf("path is %s", v.Path("v"))
	}
	b.must(b.m.Remove(p.UID))
	if _, err := os.Stat(dir); err != nil {
		t.Error("the claim's directory went with the pod")
	}
}

func TestSubPath(t *testing.T) {
	b := newBench(t)
	outside := t.TempDir()
	b.must(os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o644))
	p := onePod(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	v, _ := b.fill(p)
	root := v.Path("v")
	b.must(os.MkdirAll(root+"/dir/sub", 0o755))
	b.must(os.WriteFile(root+"/dir/f", []byte("f"), 0o644))
	for link, to := range map[string]string{"in": "dir", "out": outside, "up": "../../..", "abs": "/etc", "deep": "dir/sub/../../../../x"} {
		b.must(os.Symlink(to, root+"/"+link))
	}
	mount := &corev1.VolumeMount{Name: "v"}
	for i, tt := range []struct{ sub, err string }{
		{"dir", ""}, {"dir/f", ""}, {"in", ""}, {"in/f", ""}, {"new/deeper", ""}, {".", ""},
		{"out", "cross-device"}, {"out/secret", "cross-device"}, {"up", "cross-device"}, {"abs/passwd", "cross-device"}, {"deep", "cross-device"},
		{"../x", "must not contain '..'"}, {"/etc", "must not be an absolute path"}, {"dir/f/x", "not a directory"},
	} {
		got, err := v.Source("c", i, mount, tt.sub)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: got %s, %v", tt.sub, got, err)
		}
		if tt.sub == "in/f" {
			if text, _ := os.ReadFile(got); string(text) != "f" {
				t.Errorf("file has %q", text)
			}
		}
	}
	// Again, as after a restart of the container, and with another thing there.
	b.must(os.RemoveAll(root + "/dir"))
	b.must(os.Mkdir(root+"/dir", 0o755))
	got, err := v.Source("c", 0, mount, "dir")
	b.must(err)
	b.must(os.WriteFile(root+"/dir/fresh", nil, 0o644))
	if _, err := os.Stat(got + "/fresh"); err != nil {
		t.Error(err)
	}
	if info, _ := os.Stat(root + "/new/deeper"); info.Mode().Perm() != 0o777 {
		t.Errorf("mode is %s", info.Mode())
	}
	b.must(b.m.Remove(p.UID))
	if left, _ := mountsBelow(b.m.o.Dir); len(left) != 1 {
		t.Errorf("mounts left: %v", left)
	}
	if _, err := os.Stat(outside + "/secret"); err != nil {
		t.Error("removing the pod removed what was outside:", err)
	}
}

func TestRemoveRefusesPaths(t *testing.T) {
	b := newBench(t)
	for _, bad := range []string{"", ".", "..", "a/b", "../x", ".memory"} {
		if err := b.m.Remove(types.UID(bad)); err == nil {
			t.Errorf("%q was removed", bad)
		}
	}
	b.must(b.m.Remove("not-there"))
	b.must(b.m.Close())
	if left, _ := mountsBelow(b.m.o.Dir); len(left) > 0 {
		t.Errorf("mounts left: %v", left)
	}
}

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/a", dir+"/b"); err != nil {
		t.Fatal(err)
	}
	bytes, inodes, err := DiskUsage(t.Context(), dir)
	if err != nil || bytes < 1<<20 || bytes > 1<<20+64<<10 || inodes != 2 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
}

func TestEarly(t *testing.T) {
	p := onePod(
		corev1.Volume{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
		corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}},
	)
	for _, tt := range []struct {
		mount corev1.VolumeMount
		want  bool
	}{{corev1.VolumeMount{Name: "cm"}, true}, {corev1.VolumeMount{Name: "cm", SubPath: "x"}, false}, {corev1.VolumeMount{Name: "host"}, false}} {
		if got := Early(p, &corev1.Container{VolumeMounts: []corev1.VolumeMount{tt.mount}}); got != tt.want {
			t.Errorf("%+v: got %v", tt.mount, got)
		}
	}
}
