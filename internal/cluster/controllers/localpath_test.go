// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Whoever may edit a volume must not thereby remove any directory of the host.
func TestOnlyOwnDirectoriesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	p := &localPath{dir: dir}
	elsewhere := t.TempDir()
	for name, c := range map[string]struct {
		path   string
		remove bool
	}{
		"own":                 {filepath.Join(dir, "pvc-1_ns_data"), true},
		"another volume's":    {filepath.Join(dir, "pvc-2_ns_data"), false},
		"the whole directory": {dir, false},
		"elsewhere":           {filepath.Join(elsewhere, "pvc-1_ns_data"), false},
		"up and away":         {filepath.Join(dir, "pvc-1_x", "..", "..", filepath.Base(elsewhere)), false},
		"deeper":              {filepath.Join(dir, "pvc-1_ns_data", "pvc-1_x"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(c.path, 0o755); err != nil {
				t.Fatal(err)
			}
			volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}}
			volume.Spec.HostPath = &corev1.HostPathVolumeSource{Path: c.path}
			err := p.removeDirectory(volume)
			_, stat := os.Stat(c.path)
			if gone := os.IsNotExist(stat); gone != c.remove || (err == nil) != c.remove {
				t.Errorf("gone %t, err %v", gone, err)
			}
		})
	}
}
