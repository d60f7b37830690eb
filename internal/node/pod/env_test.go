// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "1", "B": "$(A)", "": "empty"}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(A)z": "x1y1z", "$$(A)": "$(A)", "$$$(A)": "$1", "$(NONE)": "$(NONE)",
		"$(A": "$(A", "$A": "$A", "$": "$", "$$": "$", "$(B)": "$(A)", "a$": "a$", "$(A)$": "1$", "()": "()",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$(A)$$($(B)")
	f.Fuzz(func(t *testing.T, s string) {
		got := Expand(s, func(string) (string, bool) { return "", false })
		if !strings.Contains(s, "$") && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func TestEnv(t *testing.T) {
	yes := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"x/y": "z"}},
		Spec: corev1.PodSpec{ServiceAccountName: "sa", Containers: []corev1.Container{{Name: "other", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1500m")}}}}}}
	s := Sources{
		Pod: p, NodeName: "n", HostIP: "h", PodIP: "i",
		Allocatable: corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("1Gi")},
		ConfigMaps:  map[string]*corev1.ConfigMap{"m": {Data: map[string]string{"K": "v"}}},
		Secrets:     map[string]*corev1.Secret{"s": {Data: map[string][]byte{"K": []byte("w")}}},
	}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	res := func(container, what, divisor string) *corev1.EnvVarSource {
		r := &corev1.ResourceFieldSelector{ContainerName: container, Resource: what}
		if divisor != "" {
			r.Divisor = resource.MustParse(divisor)
		}
		return &corev1.EnvVarSource{ResourceFieldRef: r}
	}
	key := func(name, k string, optional *bool) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: k, Optional: optional}}
	}
	secret := func(name, k string, optional *bool) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: k, Optional: optional}}
	}
	for _, tt := range []struct {
		from *corev1.EnvVarSource
		want string // "!" begins an error, "-" is no variable
	}{
		{field("metadata.name"), "p"}, {field("metadata.namespace"), "ns"}, {field("metadata.uid"), "u"},
		{field("metadata.labels"), "a=\"1\"\nb=\"2\""}, {field("metadata.labels['b']"), "2"}, {field("metadata.annotations['x/y']"), "z"},
		{field("metadata.labels['none']"), ""}, {field("spec.nodeName"), "n"}, {field("spec.serviceAccountName"), "sa"},
		{field("status.hostIP"), "h"}, {field("status.podIP"), "i"}, {field("status.podIPs"), "i"}, {field("status.phase"), "!unsupported fieldPath: status.phase"},
		{res("", "limits.cpu", ""), "4"}, {res("", "limits.memory", "1Mi"), "1024"}, {res("other", "requests.cpu", ""), "2"}, {res("other", "requests.cpu", "1m"), "1500"},
		{res("", "requests.memory", ""), "0"}, {res("none", "limits.cpu", ""), "!container none not found"}, {res("", "limits.gpu", ""), "!unsupported container resource : limits.gpu"},
		{key("m", "K", nil), "v"}, {key("m", "X", nil), "!couldn't find key X in ConfigMap ns/m"}, {key("m", "X", &yes), "-"},
		{key("none", "K", nil), `!configmap "none" not found`}, {key("none", "K", &yes), "-"},
		{secret("s", "K", nil), "w"}, {secret("s", "X", nil), "!couldn't find key X in Secret ns/s"}, {secret("none", "K", nil), `!secret "none" not found`}, {secret("none", "K", &yes), "-"},
	} {
		env, err := Env(&corev1.Container{Env: []corev1.EnvVar{{Name: "V", ValueFrom: tt.from}}}, s)
		got := "-"
		if err != nil {
			got = "!" + err.Error()
		} else if len(env) > 0 {
			got = strings.TrimPrefix(env[0], "V=")
		}
		if got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.from, got, tt.want)
		}
	}
}

func TestServiceEnv(t *testing.T) {
	no := false
	links := []Link{
		{"default", "kubernetes", "10.0.0.1", []corev1.ServicePort{{Name: "https", Port: 443, Protocol: "TCP"}}},
		{"ns", "my-db", "fd00::1", []corev1.ServicePort{{Port: 5432}, {Name: "x-y", Port: 1, Protocol: "UDP"}}},
		{"ns", "headless", "None", []corev1.ServicePort{{Port: 1}}},
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}
	env, err := Env(&corev1.Container{Env: []corev1.EnvVar{{Name: "URL", Value: "$(MY_DB_PORT)/x"}}}, Sources{Pod: p, Services: links, ImageEnv: []string{"URL=image", "Z=1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443", "KUBERNETES_PORT=tcp://10.0.0.1:443",
		"KUBERNETES_PORT_443_TCP_ADDR=10.0.0.1", "MY_DB_SERVICE_HOST=fd00::1", "MY_DB_PORT=tcp://[fd00::1]:5432", "MY_DB_SERVICE_PORT_X_Y=1",
		"MY_DB_PORT_1_UDP_PROTO=udp", "URL=tcp://[fd00::1]:5432/x", "Z=1",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in %v", want, env)
		}
	}
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HEADLESS") }) {
		t.Errorf("a headless service has variables: %v", env)
	}
	p.Spec.EnableServiceLinks = &no
	env, _ = Env(&corev1.Container{}, Sources{Pod: p, Services: links})
	if len(env) != 8 {
		t.Errorf("without links there are %v", env)
	}
}

func TestArgs(t *testing.T) {
	for _, tt := range []struct{ command, args, want []string }{
		{nil, nil, []string{"entry", "cmd"}},
		{nil, []string{"x"}, []string{"entry", "x"}},
		{[]string{"c"}, nil, []string{"c"}},
		{[]string{"c"}, []string{"$(V)", "$(N)"}, []string{"c", "1", "$(N)"}},
	} {
		got := Args(&corev1.Container{Command: tt.command, Args: tt.args}, []string{"entry"}, []string{"cmd"}, []string{"V=1"})
		if !slices.Equal(got, tt.want) {
			t.Errorf("got %v, want %v", got, tt.want)
		}
	}
}
