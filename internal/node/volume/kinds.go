// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sonagi/sonagi/internal/node/pod"
)

func fsGroup(p *corev1.Pod) *int64 {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	return p.Spec.SecurityContext.FSGroup
}

func isTrue(b *bool) bool { return b != nil && *b }

func mode(own, otherwise *int32) fs.FileMode {
	switch {
	case own != nil:
		return fs.FileMode(*own)
	case otherwise != nil:
		return fs.FileMode(*otherwise)
	}
	return 0o644
}

// emptyDir is a directory of the pod's own, or a tmpfs.
func (v *Pod) emptyDir(p *corev1.Pod, vol *corev1.Volume) error {
	dir := filepath.Join(v.dir, "volumes", vol.Name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	switch vol.EmptyDir.Medium {
	case corev1.StorageMediumDefault:
		if _, err := os.Lstat(dir); err == nil {
			return nil // what is in it is the pod's
		}
		// Made whole under another name: a crash in between leaves no
		// directory with wrong rights.
		fresh := filepath.Join(v.dir, ".new-"+vol.Name)
		if err := os.Mkdir(fresh, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := openToAll(fresh, fsGroup(p)); err != nil {
			return err
		}
		return os.Rename(fresh, dir)
	case corev1.StorageMediumMemory:
		if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if mounted, err := isMountPoint(dir); err != nil || mounted {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, tmpfsOptions(p, vol.EmptyDir)); err != nil {
			return fmt.Errorf("mounting tmpfs: %w", err)
		}
		return openToAll(dir, fsGroup(p))
	}
	return fmt.Errorf("unknown storage medium %q", vol.EmptyDir.Medium)
}

func openToAll(dir string, group *int64) error {
	if err := os.Chmod(dir, 0o777); err != nil { // not subject to the umask
		return err
	}
	return setGroup(dir, group, nil)
}

// tmpfsOptions bound memory by the volume's limit and by what the pod may use.
func tmpfsOptions(p *corev1.Pod, e *corev1.EmptyDirVolumeSource) string {
	limit := int64(0)
	if e.SizeLimit != nil {
		limit = e.SizeLimit.Value()
	}
	if mem, ok := pod.Limits(p)[corev1.ResourceMemory]; ok && (limit == 0 || mem.Value() < limit) {
		limit = mem.Value()
	}
	if limit == 0 {
		return "mode=0777"
	}
	return "mode=0777,size=" + strconv.FormatInt(limit, 10)
}

// setGroup gives a directory tree to a group that may write it, unless the
// policy is to look at the top only and the top is right.
func setGroup(dir string, group *int64, policy *corev1.PodFSGroupChangePolicy) error {
	if group == nil {
		return nil
	}
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch {
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err == nil && int64(st.Gid) == *group && st.Mode&unix.S_ISGID != 0 && st.Mode&0o070 == 0o070 {
			return nil
		}
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, int(*group)); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return err
		}
		m := info.Mode().Perm() | 0o060 | info.Mode()&(fs.ModeSetuid|fs.ModeSticky)
		if info.IsDir() {
			m |= 0o010 | fs.ModeSetgid
		}
		return os.Chmod(path, m)
	})
}

func (v *Pod) configMap(ctx context.Context, p *corev1.Pod, vol *corev1.Volume) error {
	src := vol.ConfigMap
	m, err := v.getConfigMap(ctx, p.Namespace, src.Name, isTrue(src.Optional))
	if err != nil {
		return err
	}
	files, err := configMapFiles(m, src.Items, src.DefaultMode, isTrue(src.Optional))
	if err != nil {
		return err
	}
	return v.write(p, vol.Name, files)
}

func (v *Pod) getConfigMap(ctx context.Context, namespace, name string, optional bool) (*corev1.ConfigMap, error) {
	m, err := v.m.o.Objects.ConfigMap(ctx, namespace, name)
	if optional && apierrors.IsNotFound(err) {
		return &corev1.ConfigMap{}, nil
	}
	return m, err
}

func (v *Pod) getSecret(ctx context.Context, namespace, name string, optional bool) (*corev1.Secret, error) {
	s, err := v.m.o.Objects.Secret(ctx, namespace, name)
	if optional && apierrors.IsNotFound(err) {
		return &corev1.Secret{}, nil
	}
	return s, err
}

func configMapFiles(m *corev1.ConfigMap, items []corev1.KeyToPath, perm *int32, optional bool) (map[string]file, error) {
	data := map[string][]byte{}
	for k, s := range m.Data {
		data[k] = []byte(s)
	}
	maps.Copy(data, m.BinaryData)
	return keyFiles(data, items, perm, optional, "configmap references non-existent config key: %s")
}

func secretFiles(s *corev1.Secret, items []corev1.KeyToPath, perm *int32, optional bool) (map[string]file, error) {
	return keyFiles(s.Data, items, perm, optional, "references non-existent secret key: %s")
}

func keyFiles(data map[string][]byte, items []corev1.KeyToPath, perm *int32, optional bool, missing string) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for k, b := range data {
			files[k] = file{data: b, mode: mode(nil, perm)}
		}
		return files, nil
	}
	for _, item := range items {
		b, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf(missing, item.Key)
		}
		files[item.Path] = file{data: b, mode: mode(item.Mode, perm)}
	}
	return files, nil
}

func (v *Pod) secret(ctx context.Context, p *corev1.Pod, vol *corev1.Volume) error {
	src := vol.Secret
	s, err := v.getSecret(ctx, p.Namespace, src.SecretName, isTrue(src.Optional))
	if err != nil {
		return err
	}
	files, err := secretFiles(s, src.Items, src.DefaultMode, isTrue(src.Optional))
	if err != nil {
		return err
	}
	return v.write(p, vol.Name, files)
}

func (v *Pod) downwardAPI(p *corev1.Pod, vol *corev1.Volume) error {
	files, err := v.fieldFiles(p, vol.DownwardAPI.Items, vol.DownwardAPI.DefaultMode)
	if err != nil {
		return err
	}
	return v.write(p, vol.Name, files)
}

func (v *Pod) fieldFiles(p *corev1.Pod, items []corev1.DownwardAPIVolumeFile, perm *int32) (map[string]file, error) {
	files := map[string]file{}
	sources := v.m.o.Sources(p)
	for _, item := range items {
		text, err := fieldText(p, item, sources)
		if err != nil {
			return nil, err
		}
		files[item.Path] = file{data: []byte(text), mode: mode(item.Mode, perm)}
	}
	return files, nil
}

func fieldText(p *corev1.Pod, item corev1.DownwardAPIVolumeFile, s pod.Sources) (string, error) {
	switch {
	case item.FieldRef != nil:
		return pod.FieldValue(item.FieldRef.FieldPath, s)
	case item.ResourceFieldRef != nil:
		m, ok := pod.Find(p, item.ResourceFieldRef.ContainerName)
		if !ok {
			return "", fmt.Errorf("container %s not found", item.ResourceFieldRef.ContainerName)
		}
		return pod.ResourceValue(item.ResourceFieldRef, m.Spec, s.Allocatable)
	}
	return "", errors.New("a downward API file needs a fieldRef or a resourceFieldRef")
}

// projected gathers several sources in one directory. All errors are told, not
// the first only.
func (v *Pod) projected(ctx context.Context, p *corev1.Pod, vol *corev1.Volume) error {
	type result struct {
		files map[string]file
		err   error
	}
	results := make([]chan result, len(vol.Projected.Sources))
	for i := range vol.Projected.Sources {
		results[i] = make(chan result, 1)
		go func() {
			files, err := v.source(ctx, p, vol, &vol.Projected.Sources[i])
			results[i] <- result{files, err}
		}()
	}
	all := map[string]file{}
	var errs []error
	for _, r := range results {
		r := <-r
		maps.Copy(all, r.files)
		errs = append(errs, r.err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return v.write(p, vol.Name, all)
}

func (v *Pod) source(ctx context.Context, p *corev1.Pod, vol *corev1.Volume, s *corev1.VolumeProjection) (map[string]file, error) {
	perm := vol.Projected.DefaultMode
	switch {
	case s.Secret != nil:
		secret, err := v.getSecret(ctx, p.Namespace, s.Secret.Name, isTrue(s.Secret.Optional))
		if err != nil {
			return nil, err
		}
		return secretFiles(secret, s.Secret.Items, perm, isTrue(s.Secret.Optional))
	case s.ConfigMap != nil:
		m, err := v.getConfigMap(ctx, p.Namespace, s.ConfigMap.Name, isTrue(s.ConfigMap.Optional))
		if err != nil {
			return nil, err
		}
		return configMapFiles(m, s.ConfigMap.Items, perm, isTrue(s.ConfigMap.Optional))
	case s.DownwardAPI != nil:
		return v.fieldFiles(p, s.DownwardAPI.Items, perm)
	case s.ServiceAccountToken != nil:
		return v.tokenFile(ctx, p, vol.Name, s.ServiceAccountToken, perm)
	}
	return nil, errors.New("unsupported projected volume source")
}

// A token is a service account's, bound to the pod.
type token struct {
	text    string
	refresh time.Time
}

// tokenFile is the token's file. Only the pod's user can read it, when that is
// known.
func (v *Pod) tokenFile(ctx context.Context, p *corev1.Pod, volume string, s *corev1.ServiceAccountTokenProjection, perm *int32) (map[string]file, error) {
	f := file{mode: mode(nil, perm), owner: pod.FSUser(p)}
	if f.owner != nil || fsGroup(p) != nil {
		f.mode = 0o600
	}
	key := volume + "/" + s.Path
	now := v.m.o.Now()
	v.mu.Lock()
	have := v.tokens[key]
	v.mu.Unlock()
	if have == nil || !now.Before(have.refresh) {
		fresh, err := v.requestToken(ctx, p, s, now)
		if err != nil && have == nil {
			return nil, err
		}
		if err == nil {
			have = fresh
			v.mu.Lock()
			v.tokens[key] = have
			v.mu.Unlock()
		} else {
			v.m.o.Log.Warn("token not refreshed", "pod", pod.FullName(p), "err", err)
			v.mu.Lock()
			have.refresh = now.Add(10 * time.Second)
			v.mu.Unlock()
		}
	}
	f.data = []byte(have.text)
	return map[string]file{s.Path: f}, nil
}

// A token is replaced after four fifths of its life, and once a day.
const tokenMaxAge = 24 * time.Hour

func (v *Pod) requestToken(ctx context.Context, p *corev1.Pod, s *corev1.ServiceAccountTokenProjection, now time.Time) (*token, error) {
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: s.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
	if s.Audience != "" {
		r.Spec.Audiences = []string{s.Audience}
	}
	got, err := v.m.o.Objects.Token(ctx, p.Namespace, p.Spec.ServiceAccountName, r)
	if err != nil {
		return nil, fmt.Errorf("failed to fetch token: %w", err)
	}
	life := got.Status.ExpirationTimestamp.Sub(now)
	// The spread keeps tokens that were made together from being renewed together.
	age := min(life*4/5, tokenMaxAge) - time.Duration(rand.Int64N(int64(max(1, min(life/20, 10*time.Second)))))
	return &token{text: got.Status.Token, refresh: now.Add(age)}, nil
}

// refreshAt is when the first token has to be replaced.
func (v *Pod) refreshAt() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	var first time.Time
	for _, t := range v.tokens {
		if first.IsZero() || t.refresh.Before(first) {
			first = t.refresh
		}
	}
	return first
}

func (v *Pod) write(p *corev1.Pod, name string, files map[string]file) error {
	path := v.Path(name)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return errors.New("pod is gone")
	}
	return write(path, files, fsGroup(p), v.m.o.Now())
}

func (v *Pod) hostPath(name string, h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if err := checkHostPath(h.Path, kind); err != nil {
		return err
	}
	v.setPath(name, h.Path)
	return nil
}

func checkHostPath(path string, kind corev1.HostPathType) error {
	switch kind {
	case corev1.HostPathUnset:
		// As with container runtimes: a source that is missing is made a directory.
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return os.MkdirAll(path, 0o755)
		}
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return os.MkdirAll(path, 0o755)
		}
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			return f.Close()
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	info, err := os.Stat(path)
	m := fs.FileMode(0)
	if err == nil {
		m = info.Mode()
	}
	is := func(ok bool, what string) error {
		if err != nil || !ok {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", path, what)
		}
		return nil
	}
	switch kind {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		return is(m.IsDir(), "directory")
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		return is(m.IsRegular(), "file")
	case corev1.HostPathSocket:
		return is(m&fs.ModeSocket != 0, "socket file")
	case corev1.HostPathCharDev:
		return is(m&fs.ModeCharDevice != 0, "character device")
	case corev1.HostPathBlockDev:
		return is(m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0, "block device")
	}
	return fmt.Errorf("%s is an invalid volume type", kind)
}

// claim finds the directory that a claim stands for.
func (v *Pod) claim(ctx context.Context, p *corev1.Pod, volume, claim string, _ bool) error {
	c, err := v.m.o.Objects.Claim(ctx, p.Namespace, claim)
	if err != nil {
		return err
	}
	if c.Status.Phase != corev1.ClaimBound || c.Spec.VolumeName == "" {
		return fmt.Errorf("PVC %s/%s is not bound", p.Namespace, claim)
	}
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		return fmt.Errorf("PVC %s/%s is a block device, which is not supported", p.Namespace, claim)
	}
	pv, err := v.m.o.Objects.Volume(ctx, c.Spec.VolumeName)
	if err != nil {
		return err
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != c.UID {
		return fmt.Errorf("PV %s is not bound to PVC %s/%s", pv.Name, p.Namespace, claim)
	}
	switch {
	case pv.Spec.Local != nil:
		if _, err := os.Stat(pv.Spec.Local.Path); err != nil {
			return fmt.Errorf("path %q does not exist", pv.Spec.Local.Path)
		}
		v.setPath(volume, pv.Spec.Local.Path)
	case pv.Spec.HostPath != nil:
		return v.hostPath(volume, pv.Spec.HostPath)
	default:
		return fmt.Errorf("no volume plugin matched for PV %s", pv.Name)
	}
	var policy *corev1.PodFSGroupChangePolicy
	if sc := p.Spec.SecurityContext; sc != nil {
		policy = sc.FSGroupChangePolicy
	}
	return setGroup(v.Path(volume), fsGroup(p), policy)
}
