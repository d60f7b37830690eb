// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"k8s.io/utils/ptr"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/serving/pkg/apis/config"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the answers")

// now is when revisions are made.
var now = time.Unix(1_700_000_000, 0)

// read parses settings: the data of ConfigMaps, as far as a test gives it.
func read(t *testing.T, text []byte) *Settings {
	t.Helper()
	var in struct {
		Features, Network map[string]string
		Domains           []Domain
		RuntimeClasses    []RuntimeClass
		SpreadOverNodes   bool
		VarLog            bool
	}
	if err := yaml.UnmarshalStrict(text, &in); err != nil {
		t.Fatal(err)
	}
	s := &Settings{
		ClusterDomain: "cluster.local", InitialScale: 1, ProgressDeadline: 10 * time.Minute,
		Domains: in.Domains, RuntimeClasses: in.RuntimeClasses, SpreadOverNodes: in.SpreadOverNodes, VarLog: in.VarLog,
	}
	if s.Domains == nil {
		s.Domains = []Domain{{Name: "sonagi.localhost"}}
	}
	var errs [3]error
	s.Defaults, errs[0] = config.NewDefaultsConfigFromMap(nil)
	s.Features, errs[1] = config.NewFeaturesConfigFromMap(in.Features)
	s.Network, errs[2] = networkingconfig.NewConfigFromMap(in.Network)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return s
}

// builders are the answers that a file may ask for, from its service or revision.
var builders = map[string]func(*servingv1.Service, *servingv1.Revision, *Settings) (any, error){
	"configuration": func(svc *servingv1.Service, _ *servingv1.Revision, _ *Settings) (any, error) {
		return Configuration(svc, nil), nil
	},
	"route": func(svc *servingv1.Service, _ *servingv1.Revision, _ *Settings) (any, error) { return Route(svc), nil },
	"revision": func(svc *servingv1.Service, _ *servingv1.Revision, _ *Settings) (any, error) {
		cfg := Configuration(svc, nil)
		cfg.UID, cfg.Generation = "config-uid", svc.Generation
		return Revision(cfg, now), nil
	},
	"placeholder": func(svc *servingv1.Service, _ *servingv1.Revision, s *Settings) (any, error) {
		r := Route(svc)
		r.UID = "route-uid"
		name, err := s.Hostname(r.Name, "blue")
		return Placeholder(r, name, s), err
	},
	"deployment": func(_ *servingv1.Service, r *servingv1.Revision, s *Settings) (any, error) { return Deployment(r, s) },
	"podautoscaler": func(_ *servingv1.Service, r *servingv1.Revision, _ *Settings) (any, error) {
		return PodAutoscaler(r, nil), nil
	},
	"public": func(_ *servingv1.Service, r *servingv1.Revision, s *Settings) (any, error) {
		return PublicService(r, s), nil
	},
	"private": func(_ *servingv1.Service, r *servingv1.Revision, _ *Settings) (any, error) {
		return PrivateService(r), nil
	},
}

// TestGolden builds what each file asks for. A file holds a service or a revision, settings
// if they differ from the defaults, and the answers by the names of the builders.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			svc, rev, settings := &servingv1.Service{}, &servingv1.Revision{}, read(t, nil)
			for i, f := range archive.Files {
				switch f.Name {
				case "service":
					err = yaml.UnmarshalStrict(f.Data, svc)
				case "revision.in":
					err = yaml.UnmarshalStrict(f.Data, rev)
				case "settings":
					settings = read(t, f.Data)
				default:
					var answer any
					if answer, err = builders[f.Name](svc, rev, settings); err != nil {
						t.Fatal(err)
					}
					archive.Files[i].Data = compare(t, f, answer)
				}
				if err != nil {
					t.Fatalf("%s: %v", f.Name, err)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func compare(t *testing.T, f txtar.File, answer any) []byte {
	t.Helper()
	have, err := yaml.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	if !*update && string(have) != string(f.Data) {
		t.Errorf("%s is\n%s\nwant\n%s", f.Name, have, f.Data)
	}
	return have
}

func TestHosts(t *testing.T) {
	s := read(t, []byte(`{"domains": [{"name": "example.com"}, {"name": "example.org", "selector": {"app": "shop"}}, {"name": "svc.cluster.local", "selector": {"app": "secret"}}]}`))
	route := func(labels map[string]string) *servingv1.Route {
		r := &servingv1.Route{}
		r.Name, r.Namespace, r.Labels = "web", "team", labels
		return r
	}
	for name, tt := range map[string]struct {
		labels, placeholder map[string]string
		template            string
		want                string
		fails               bool
	}{
		"default":              {nil, nil, "", "web.team.example.com", false},
		"by label":             {map[string]string{"app": "shop"}, nil, "", "web.team.example.org", false},
		"a local domain":       {map[string]string{"app": "secret"}, nil, "", "web.team.svc.cluster.local", false},
		"local by label":       {map[string]string{visibilityLabel: "cluster-local"}, nil, "", "web.team.svc.cluster.local", false},
		"local by placeholder": {nil, map[string]string{visibilityLabel: "cluster-local"}, "", "web.team.svc.cluster.local", false},
		"by template":          {map[string]string{"team": "blue"}, nil, `{{.Name}}.{{index .Labels "team"}}.{{.Domain}}`, "web.blue.example.com", false},
		"not a name":           {nil, nil, `{{.Name}}..{{.Domain}}`, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			one := *s
			if tt.template != "" {
				one.Network = ptr.To(*s.Network)
				one.Network.DomainTemplate = tt.template
			}
			r := route(tt.labels)
			have, err := one.Host(r, r.Name, one.Local(r, tt.placeholder))
			if have != tt.want || (err != nil) != tt.fails || err != nil && !errors.Is(err, ErrDomain) {
				t.Errorf("got %q, %v", have, err)
			}
		})
	}
}

// What others write on a Deployment stays; its replicas are the autoscaler's.
func TestUpdateDeployment(t *testing.T) {
	rev := &servingv1.Revision{}
	rev.Name, rev.Namespace, rev.UID = "web-00001", "team", "uid"
	want, err := Deployment(rev, read(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	have := want.DeepCopy()
	have.Spec.Replicas = ptr.To[int32](7)
	have.Spec.Template.Annotations = map[string]string{"kubectl.kubernetes.io/restartedAt": "today", "serving.knative.dev/gone": "x"}
	have.Labels["owner"] = "me"
	got := UpdateDeployment(have, want)
	if *got.Spec.Replicas != 7 || got.Labels["owner"] != "me" || got.Spec.Template.Annotations["kubectl.kubernetes.io/restartedAt"] != "today" {
		t.Errorf("lost what others wrote: %+v", got)
	}
	if _, ok := got.Spec.Template.Annotations["serving.knative.dev/gone"]; ok {
		t.Error("kept what is no longer wanted")
	}
	again, err := Deployment(rev, read(t, nil))
	if err != nil || again.Labels[HashLabel] != want.Labels[HashLabel] {
		t.Error("the same revision has another hash")
	}
}

func TestRoutes(t *testing.T) {
	r := &servingv1.Revision{}
	for _, tt := range []struct {
		have, route string
		in          bool
		want        string
	}{{"", "a", true, "a"}, {"b", "a", true, "a,b"}, {"a,b", "a", true, "a,b"}, {"a,b", "a", false, "b"}, {"a", "a", false, ""}, {"", "a", false, ""}} {
		r.Annotations = map[string]string{"serving.knative.dev/routes": tt.have}
		if got := RoutesWith(r, tt.route, tt.in); got != tt.want {
			t.Errorf("%q with %q %t is %q, want %q", tt.have, tt.route, tt.in, got, tt.want)
		}
	}
}
