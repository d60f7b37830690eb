// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Sources is where the values of environment variables come from. A ConfigMap
// or Secret that is absent from its map does not exist.
type Sources struct {
	Pod         *corev1.Pod // with the addresses in its status
	NodeName    string
	HostIP      string
	PodIP       string
	Allocatable corev1.ResourceList
	ConfigMaps  map[string]*corev1.ConfigMap
	Secrets     map[string]*corev1.Secret
	Services    []Link   // in the pod's namespace, and kubernetes of default
	ImageEnv    []string // as KEY=value
	File        func(volume, path, key string) (string, bool, error)
}

// A Link is a Service as environment variables tell of it.
type Link struct {
	Namespace, Name, ClusterIP string
	Ports                      []corev1.ServicePort
}

// Env is the environment of a container, as sorted KEY=value: what the image
// has, then service variables, then what the container declares.
func Env(c *corev1.Container, s Sources) ([]string, error) {
	links := serviceEnv(s)
	env := map[string]string{}
	for _, from := range c.EnvFrom {
		if err := envFrom(env, from, s); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := env[name]; ok {
			return v, true
		}
		v, ok := links[name]
		return v, ok
	}
	for _, e := range c.Env {
		switch {
		case e.Value != "":
			env[e.Name] = Expand(e.Value, lookup)
		case e.ValueFrom != nil:
			v, ok, err := valueFrom(c, e.ValueFrom, s)
			if err != nil {
				return nil, err
			}
			if ok {
				env[e.Name] = v
			}
		default:
			env[e.Name] = ""
		}
	}
	all := map[string]string{}
	for _, kv := range s.ImageEnv {
		k, v, _ := strings.Cut(kv, "=")
		all[k] = v
	}
	maps.Copy(all, links)
	maps.Copy(all, env)
	out := make([]string, 0, len(all))
	for k, v := range all {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out, nil
}

func envFrom(env map[string]string, from corev1.EnvFromSource, s Sources) error {
	switch {
	case from.ConfigMapRef != nil:
		ref := from.ConfigMapRef
		m, ok := s.ConfigMaps[ref.Name]
		if !ok {
			return missing("configmap", ref.Name, isTrue(ref.Optional))
		}
		for k, v := range m.Data {
			env[from.Prefix+k] = v
		}
	case from.SecretRef != nil:
		ref := from.SecretRef
		m, ok := s.Secrets[ref.Name]
		if !ok {
			return missing("secret", ref.Name, isTrue(ref.Optional))
		}
		for k, v := range m.Data {
			env[from.Prefix+k] = string(v)
		}
	}
	return nil
}

// valueFrom is the value of a reference; false when an optional one leads
// nowhere.
func valueFrom(c *corev1.Container, from *corev1.EnvVarSource, s Sources) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		v, err := FieldValue(from.FieldRef.FieldPath, s)
		return v, true, err
	case from.ResourceFieldRef != nil:
		of := c
		if name := from.ResourceFieldRef.ContainerName; name != "" {
			m, ok := Find(s.Pod, name)
			if !ok {
				return "", false, fmt.Errorf("container %s not found", name)
			}
			of = m.Spec
		}
		v, err := ResourceValue(from.ResourceFieldRef, of, s.Allocatable)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, ok := s.ConfigMaps[ref.Name]
		if !ok {
			return "", false, missing("configmap", ref.Name, isTrue(ref.Optional))
		}
		v, ok := m.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, s.Pod.Namespace, ref.Name)
		}
		return v, ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		m, ok := s.Secrets[ref.Name]
		if !ok {
			return "", false, missing("secret", ref.Name, isTrue(ref.Optional))
		}
		v, ok := m.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, s.Pod.Namespace, ref.Name)
		}
		return string(v), ok, nil
	case from.FileKeyRef != nil:
		return fileKey(from.FileKeyRef, s)
	}
	return "", false, nil
}

func fileKey(ref *corev1.FileKeySelector, s Sources) (string, bool, error) {
	if s.File == nil {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	v, ok, err := s.File(ref.VolumeName, ref.Path, ref.Key)
	if err != nil {
		return "", false, err
	}
	if !ok && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
	}
	return v, ok, nil
}

func missing(kind, name string, optional bool) error {
	if optional {
		return nil
	}
	return fmt.Errorf("%s %q not found", kind, name)
}

func isTrue(b *bool) bool { return b != nil && *b }

// EnvObjects names the ConfigMaps and Secrets that a container's environment
// is made from.
func EnvObjects(c *corev1.Container) (configMaps, secrets []string) {
	for _, f := range c.EnvFrom {
		if f.ConfigMapRef != nil {
			configMaps = append(configMaps, f.ConfigMapRef.Name)
		}
		if f.SecretRef != nil {
			secrets = append(secrets, f.SecretRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			configMaps = append(configMaps, r.Name)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			secrets = append(secrets, r.Name)
		}
	}
	slices.Sort(configMaps)
	slices.Sort(secrets)
	return slices.Compact(configMaps), slices.Compact(secrets)
}

// Expand replaces $(NAME) by its value. $$ is a $, and a reference to what is
// not known stays as it is.
func Expand(text string, lookup func(string) (string, bool)) string {
	if !strings.Contains(text, "$") {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '$' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		switch text[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(text[i+2:], ')')
			if end < 0 {
				b.WriteByte('$')
				continue
			}
			name := text[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += end + 2
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// Args are the words of a container's command line, expanded: its own command
// and arguments, or the image's where it has none.
func Args(c *corev1.Container, entrypoint, cmd []string, env []string) []string {
	vars := make(map[string]string, len(env))
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	expand := func(words []string) []string {
		out := make([]string, len(words))
		for i, w := range words {
			out[i] = Expand(w, lookup)
		}
		return out
	}
	command, args := expand(c.Command), expand(c.Args)
	if len(c.Command) == 0 {
		command = entrypoint
		if len(c.Args) == 0 {
			args = cmd
		}
	}
	return slices.Concat(command, args)
}

// serviceEnv are the variables of Services: those of kubernetes always, those
// of the pod's namespace unless it does not want them.
func serviceEnv(s Sources) map[string]string {
	env := map[string]string{}
	links := s.Pod.Spec.EnableServiceLinks == nil || *s.Pod.Spec.EnableServiceLinks
	own := map[string]bool{}
	for _, svc := range s.Services {
		if svc.Namespace == s.Pod.Namespace && links {
			own[svc.Name] = true
		}
	}
	for _, svc := range s.Services {
		master := svc.Namespace == "default" && svc.Name == "kubernetes"
		mine := svc.Namespace == s.Pod.Namespace && links
		if svc.ClusterIP == "" || svc.ClusterIP == "None" || len(svc.Ports) == 0 || !mine && (!master || own[svc.Name]) {
			continue
		}
		serviceVars(env, svc)
	}
	return env
}

func serviceVars(env map[string]string, svc Link) {
	prefix := varName(svc.Name)
	env[prefix+"_SERVICE_HOST"] = svc.ClusterIP
	env[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(svc.Ports[0].Port))
	for i, port := range svc.Ports {
		number := strconv.Itoa(int(port.Port))
		if port.Name != "" {
			env[prefix+"_SERVICE_PORT_"+varName(port.Name)] = number
		}
		proto := strings.ToLower(string(port.Protocol))
		if proto == "" {
			proto = "tcp"
		}
		url := proto + "://" + hostPort(svc.ClusterIP, number)
		if i == 0 {
			env[prefix+"_PORT"] = url
		}
		one := prefix + "_PORT_" + number + "_" + strings.ToUpper(proto)
		env[one] = url
		env[one+"_PROTO"] = proto
		env[one+"_PORT"] = number
		env[one+"_ADDR"] = svc.ClusterIP
	}
}

func varName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }

// FieldValue is the value of a fieldRef.
func FieldValue(path string, s Sources) (string, error) {
	p := s.Pod
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "metadata.labels":
		return formatMap(p.Labels), nil
	case "metadata.annotations":
		return formatMap(p.Annotations), nil
	case "spec.nodeName":
		return s.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return s.HostIP, nil
	case "status.podIP", "status.podIPs":
		return s.PodIP, nil
	case "spec.hostname":
		return Hostname(p), nil
	case "spec.subdomain":
		return p.Spec.Subdomain, nil
	}
	field, key, ok := subscript(path)
	switch {
	case ok && field == "metadata.labels":
		return p.Labels[key], nil
	case ok && field == "metadata.annotations":
		return p.Annotations[key], nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// subscript splits metadata.labels['key'].
func subscript(path string) (field, key string, ok bool) {
	field, rest, ok := strings.Cut(path, "['")
	if !ok {
		return "", "", false
	}
	key, ok = strings.CutSuffix(rest, "']")
	return field, key, ok
}

func formatMap(m map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s=%q", k, m[k])
	}
	return b.String()
}

// hostPort joins an address and a port; an IPv6 address gets its brackets.
func hostPort(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}
