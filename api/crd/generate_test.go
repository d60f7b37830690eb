// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the definitions")

type object = map[string]any

// A kind is what the schema cannot say about a definition.
type kind struct {
	group, version, name, plural string
	about                        string
	cluster                      bool
	short, categories            []string
	labels                       map[string]string
	columns                      [][3]string // name, type, JSONPath
	of                           any
}

const (
	serving     = "serving.knative.dev"
	autoscaling = "autoscaling.internal.knative.dev"
	networking  = "networking.internal.knative.dev"
)

func ready(columns ...[3]string) [][3]string {
	return append(columns,
		[3]string{"Ready", "string", ".status.conditions[?(@.type=='Ready')].status"},
		[3]string{"Reason", "string", ".status.conditions[?(@.type=='Ready')].reason"})
}

var (
	colURL           = [3]string{"URL", "string", ".status.url"}
	colLatestCreated = [3]string{"LatestCreated", "string", ".status.latestCreatedRevisionName"}
	colLatestReady   = [3]string{"LatestReady", "string", ".status.latestReadyRevisionName"}
	public           = []string{"all", "knative", "serving"}
	addressable      = map[string]string{"duck.knative.dev/addressable": "true"}
	podspecable      = map[string]string{"duck.knative.dev/podspecable": "true"}
)

var kinds = []kind{{
	group: serving, version: "v1", name: "Service", plural: "services", short: []string{"kservice", "ksvc"}, categories: public,
	about:   "Service runs a container image under a URL: it owns one Configuration and one Route.",
	labels:  map[string]string{"duck.knative.dev/addressable": "true", "duck.knative.dev/podspecable": "true"},
	columns: ready(colURL, colLatestCreated, colLatestReady), of: servingv1.Service{},
}, {
	group: serving, version: "v1", name: "Configuration", plural: "configurations", short: []string{"config", "cfg"}, categories: public,
	about:  "Configuration is the wanted state of the newest Revision; each change of its template makes a new one.",
	labels: podspecable, columns: ready(colLatestCreated, colLatestReady), of: servingv1.Configuration{},
}, {
	group: serving, version: "v1", name: "Revision", plural: "revisions", short: []string{"rev"}, categories: public,
	about: "Revision is one immutable state of code and settings.",
	columns: append(ready([3]string{"Config Name", "string", `.metadata.labels['serving\.knative\.dev/configuration']`},
		[3]string{"Generation", "string", `.metadata.labels['serving\.knative\.dev/configurationGeneration']`}),
		[3]string{"Actual Replicas", "integer", ".status.actualReplicas"},
		[3]string{"Desired Replicas", "integer", ".status.desiredReplicas"}), of: servingv1.Revision{},
}, {
	group: serving, version: "v1", name: "Route", plural: "routes", short: []string{"rt"}, categories: public,
	about:  "Route spreads the requests to a URL over Revisions.",
	labels: addressable, columns: ready(colURL), of: servingv1.Route{},
}, {
	group: serving, version: "v1beta1", name: "DomainMapping", plural: "domainmappings", short: []string{"dm"}, categories: public,
	about: "DomainMapping serves an addressable object under a domain name of one's own.", columns: ready(colURL), of: servingv1beta1.DomainMapping{},
}, {
	group: autoscaling, version: "v1alpha1", name: "PodAutoscaler", plural: "podautoscalers", short: []string{"kpa", "pa"},
	categories: []string{"knative-internal", "autoscaling"}, about: "PodAutoscaler tells how a Revision's pods are scaled, and how many there are.",
	columns: ready([3]string{"DesiredScale", "integer", ".status.desiredScale"}, [3]string{"ActualScale", "integer", ".status.actualScale"}),
	of:      autoscalingv1alpha1.PodAutoscaler{},
}, {
	group: autoscaling, version: "v1alpha1", name: "Metric", plural: "metrics", categories: []string{"knative-internal", "autoscaling"},
	about: "Metric names a source of load figures.", columns: ready(), of: autoscalingv1alpha1.Metric{},
}, {
	group: networking, version: "v1alpha1", name: "ClusterDomainClaim", plural: "clusterdomainclaims", cluster: true, short: []string{"cdc"},
	categories: []string{"knative-internal", "networking"}, about: "ClusterDomainClaim reserves a domain name for one namespace.",
	of: netv1alpha1.ClusterDomainClaim{},
}, {
	group: networking, version: "v1alpha1", name: "Certificate", plural: "certificates", short: []string{"kcert"},
	categories: []string{"knative-internal", "networking"}, about: "Certificate asks for a certificate for hosts, to be kept in a Secret.",
	columns: [][3]string{
		{"Ready", "string", `.status.conditions[?(@.type=="Ready")].status`},
		{"Reason", "string", `.status.conditions[?(@.type=="Ready")].reason`},
	}, of: netv1alpha1.Certificate{},
}}

func TestDefinitions(t *testing.T) {
	for _, k := range kinds {
		file := k.plural + "." + k.group + ".yaml"
		want, err := yaml.Marshal(k.definition())
		if err != nil {
			t.Fatal(err)
		}
		want = append([]byte("# SPDX-License-Identifier: Apache-2.0\n# Generated by generate_test.go; run go test -update.\n"), want...)
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what the types say; run go test -update", file)
		}
	}
	if docs, err := All(); err != nil || len(docs) != len(kinds) && !*update {
		t.Errorf("All() = %d definitions, %v; want %d", len(docs), err, len(kinds))
	}
}

func (k kind) definition() object {
	names := object{"kind": k.name, "listKind": k.name + "List", "plural": k.plural, "singular": strings.ToLower(k.name), "categories": k.categories}
	if len(k.short) > 0 {
		names["shortNames"] = k.short
	}
	scope := "Namespaced"
	if k.cluster {
		scope = "Cluster"
	}
	root := schemaOf(reflect.TypeOf(k.of))
	root["description"] = k.about
	props := root["properties"].(object)
	props["apiVersion"] = object{"type": "string"}
	props["kind"] = object{"type": "string"}
	props["metadata"] = object{"type": "object"}
	version := object{
		"name": k.version, "served": true, "storage": true, "subresources": object{"status": object{}},
		"schema": object{"openAPIV3Schema": root},
	}
	var columns []object
	for _, c := range k.columns {
		columns = append(columns, object{"name": c[0], "type": c[1], "jsonPath": c[2]})
	}
	if columns != nil {
		version["additionalPrinterColumns"] = columns
	}
	labels := object{"app.kubernetes.io/name": "knative-serving", "app.kubernetes.io/version": "1.22.0", "knative.dev/crd-install": "true"}
	for key, v := range k.labels {
		labels[key] = v
	}
	return object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": k.plural + "." + k.group, "labels": labels},
		"spec":     object{"group": k.group, "names": names, "scope": scope, "versions": []object{version}},
	}
}

// schemaOf walks a Go type. What the types alone cannot tell is in fields, gated and hints.
func schemaOf(t reflect.Type) object {
	if t.Kind() == reflect.Pointer {
		return schemaOf(t.Elem())
	}
	if s, ok := opaque[t.Name()]; ok {
		return clone(s)
	}
	switch t.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int32:
		return object{"type": "integer", "format": "int32"}
	case reflect.Int64, reflect.Int:
		return object{"type": "integer", "format": "int64"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Slice:
		items := schemaOf(t.Elem())
		maps.Copy(items, hints[t.Elem().Name()+"[]"])
		return object{"type": "array", "items": items}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schemaOf(t.Elem())}
	case reflect.Struct:
		s := object{"type": "object", "properties": object{}}
		addFields(s, t)
		if len(s["properties"].(object)) == 0 {
			delete(s, "properties")
		}
		return s
	}
	panic("no schema for " + t.String())
}

func addFields(s object, t reflect.Type) {
	keep := strings.Fields(fields[t.Name()])
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && f.Anonymous {
			addFields(s, f.Type)
			continue
		}
		if flag := gated[t.Name()+"."+name]; flag != "" {
			field := gate(schemaOf(f.Type), flag)
			maps.Copy(field, hints[t.Name()+"."+name])
			s["properties"].(object)[name] = field
			continue
		}
		if name == "" || name == "-" || len(keep) > 0 && !slices.Contains(keep, name) {
			continue
		}
		addField(s, t.Name(), name, schemaOf(f.Type), !strings.Contains(opts, "omitempty"))
	}
}

func addField(s object, typeName, name string, field object, required bool) {
	path := typeName + "." + name
	if about := descriptions[path]; about != "" {
		field["description"] = about
	}
	for key, v := range hints[path] {
		if key == "optional" {
			required = false
			continue
		}
		field[key] = v
	}
	s["properties"].(object)[name] = field
	if _, isObject := field["properties"]; required && (!isObject || hints[path]["required!"] != nil) || hints[path]["required!"] != nil {
		delete(field, "required!")
		have, _ := s["required"].([]string)
		have = append(have, name)
		slices.Sort(have)
		s["required"] = have
	}
}

// gate is the schema of a field that a feature flag opens: its inside is left to admission,
// which knows the flag.
func gate(s object, flag string) object {
	about := "Needs the feature flag " + flag + "."
	open := func(s object) object {
		if s["properties"] == nil {
			return s
		}
		return object{"type": "object", "x-kubernetes-preserve-unknown-fields": true}
	}
	if items, ok := s["items"].(object); ok {
		return object{"type": "array", "items": open(items), "description": about}
	}
	s = open(s)
	s["description"] = about
	return s
}

func clone(o object) object {
	c := object{}
	for k, v := range o {
		if inner, ok := v.(object); ok {
			v = clone(inner)
		}
		c[k] = v
	}
	return c
}
