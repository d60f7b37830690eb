// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A file is one file of a volume that is made from objects.
type file struct {
	data  []byte
	mode  fs.FileMode
	owner *int64
}

// dataLink is the symbolic link whose swap changes all files at once. Each name
// a user sees is a symbolic link through it.
const dataLink = "..data"

// write makes dir hold exactly those files, by their paths in it. Readers see
// the old files or the new ones, never some of each. group owns them, if any.
func write(dir string, files map[string]file, group *int64, now time.Time) error {
	for path := range files {
		if err := checkPath(path); err != nil {
			return err
		}
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if current != "" && same(filepath.Join(dir, current), files) {
		return link(dir, files)
	}
	fresh, err := os.MkdirTemp(dir, now.UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := fill(fresh, files, group); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	temporary := filepath.Join(dir, dataLink+"_tmp")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(fresh), temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	if err := link(dir, files); err != nil {
		return err
	}
	return sweep(dir, filepath.Base(fresh), files)
}

// checkPath refuses paths that lead out of the volume or into its machinery.
func checkPath(path string) error {
	if path == "" || !filepath.IsLocal(path) || filepath.Clean(path) != path || strings.HasPrefix(path, "..") {
		return fmt.Errorf("invalid path %q in volume", path)
	}
	return nil
}

func fill(dir string, files map[string]file, group *int64) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := own(dir, nil, group); err != nil {
		return err
	}
	for path, f := range files {
		at := filepath.Join(dir, path)
		if err := makeDirs(dir, filepath.Dir(path), group); err != nil {
			return err
		}
		if err := os.WriteFile(at, f.data, 0o600); err != nil {
			return err
		}
		mode := f.mode
		if group != nil {
			mode |= 0o440
		}
		if err := own(at, f.owner, group); err != nil {
			return err
		}
		if err := os.Chmod(at, mode); err != nil { // not subject to the umask, and after the change of owner
			return err
		}
	}
	return nil
}

func makeDirs(dir, path string, group *int64) error {
	if path == "." {
		return nil
	}
	if err := makeDirs(dir, filepath.Dir(path), group); err != nil {
		return err
	}
	at := filepath.Join(dir, path)
	if err := os.Mkdir(at, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return own(at, nil, group)
}

func own(path string, user, group *int64) error {
	if user == nil && group == nil {
		return nil
	}
	uid, gid := -1, -1
	if user != nil {
		uid = int(*user)
	}
	if group != nil {
		gid = int(*group)
	}
	return os.Lchown(path, uid, gid)
}

// same reports whether dir holds exactly those files.
func same(dir string, files map[string]file) bool {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		have, err := os.ReadFile(path)
		want, ok := files[rel]
		if err != nil || !ok || !bytes.Equal(have, want.data) {
			return errors.Join(err, fs.ErrInvalid)
		}
		seen++
		return nil
	})
	return err == nil && seen == len(files)
}

// link makes the names that users see.
func link(dir string, files map[string]file) error {
	for path := range files {
		name, _, _ := strings.Cut(path, "/")
		err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// sweep removes names and generations of files that are no more.
func sweep(dir, current string, files map[string]file) error {
	keep := map[string]bool{dataLink: true, current: true}
	for path := range files {
		name, _, _ := strings.Cut(path, "/")
		keep[name] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !keep[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
