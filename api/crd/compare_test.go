// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestSameAsKnative holds the definitions to those in the module the types come from, but
// for descriptions.
func TestSameAsKnative(t *testing.T) {
	upstream := map[string]object{}
	for module, glob := range map[string]string{"knative.dev/serving": "config/core/300-resources/*.yaml", "knative.dev/networking": "config/[dc]*.yaml"} {
		dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
		if err != nil {
			t.Skip("module source is not at hand")
		}
		paths, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), glob))
		for _, p := range paths {
			upstream[read(t, p)["metadata"].(object)["name"].(string)] = read(t, p)
		}
	}
	for _, k := range kinds {
		name := k.plural + "." + k.group
		have := read(t, name+".yaml")["spec"].(object)
		want := upstream[name]["spec"].(object)
		delete(have["names"].(object), "listKind")
		diff(t, name, strip(have), strip(want))
	}
}

func read(t *testing.T, path string) object {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var o object
	if err := yaml.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func strip(v any) any {
	switch v := v.(type) {
	case object:
		for key, inner := range v {
			if _, text := inner.(string); key == "description" && text {
				delete(v, key)
				continue
			}
			v[key] = strip(inner)
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
	}
	return v
}

func diff(t *testing.T, path string, have, want any) {
	h, hok := have.(object)
	w, wok := want.(object)
	if !hok || !wok {
		hl, _ := have.([]any)
		wl, _ := want.([]any)
		if len(hl) > 0 && len(hl) == len(wl) {
			for i := range hl {
				diff(t, fmt.Sprintf("%s[%d]", path, i), hl[i], wl[i])
			}
			return
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("%s: %v, Knative has %v", path, have, want)
		}
		return
	}
	for key := range w {
		diff(t, path+"."+key, h[key], w[key])
	}
	for key := range h {
		if _, ok := w[key]; !ok {
			t.Errorf("%s.%s: %v, Knative has none", path, key, h[key])
		}
	}
}
