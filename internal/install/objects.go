// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/sonagi/sonagi/api/crd"
)

type object = map[string]any

// objects are all that is installed, in stages: what a stage needs is in an earlier one.
func objects(o Options) ([][]*unstructured.Unstructured, error) {
	definitions, err := definitions()
	if err != nil {
		return nil, err
	}
	first := append(definitions, namespaces()...)
	first = append(first, clusterRoles(o)...)
	second := append(configMaps(o), services(o)...)
	return [][]*unstructured.Unstructured{first, append(second, roles(o)...)}, nil
}

func definitions() ([]*unstructured.Unstructured, error) {
	docs, err := crd.All()
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, doc := range docs {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			return nil, fmt.Errorf("parse definition: %w", err)
		}
		out = append(out, u)
	}
	return out, nil
}

// build makes an object of its head and its parts.
func build(apiVersion, kind, namespace, name string, parts object) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: object{"apiVersion": apiVersion, "kind": kind}}
	for key, part := range parts {
		u.Object[key] = part
	}
	u.SetName(name)
	u.SetNamespace(namespace)
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels["app.kubernetes.io/managed-by"] = manager
	if namespace == servingNamespace || namespace == ingressNamespace || kind == "ClusterRole" {
		labels["app.kubernetes.io/name"] = "knative-serving"
		labels["app.kubernetes.io/version"] = "1.22.0"
	}
	u.SetLabels(labels)
	return u
}

func configMap(namespace, name string, data object) *unstructured.Unstructured {
	return build("v1", "ConfigMap", namespace, name, object{"data": data})
}

func namespaces() []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, name := range []string{servingNamespace, ingressNamespace, systemNamespace} {
		u := build("v1", "Namespace", "", name, nil)
		if name != systemNamespace {
			labels := u.GetLabels()
			labels["app.kubernetes.io/name"], labels["app.kubernetes.io/version"] = "knative-serving", "1.22.0"
			u.SetLabels(labels)
		}
		out = append(out, u)
	}
	return out
}

// A port of a Service that leads to a listener of this process.
type port struct {
	name, protocol, appProtocol string
	number, target              uint16
}

func services(o Options) []*unstructured.Unstructured {
	h2c := "kubernetes.io/h2c"
	outside := []port{{"http2", "TCP", h2c, 80, o.GatewayPort}}
	if o.SecurePort != 0 {
		outside = append(outside, port{"https", "TCP", "", 443, o.SecurePort})
	}
	out := fixed(o, ingressNamespace, "kourier", "LoadBalancer", netip.Addr{}, outside...)
	out[0].Object["status"] = object{"loadBalancer": object{"ingress": []any{object{"ip": o.LoadBalancer.String()}}}}
	out = append(out, fixed(o, ingressNamespace, "kourier-internal", "ClusterIP", netip.Addr{}, port{"http2", "TCP", h2c, 80, o.InternalPort})...)
	out = append(out, fixed(o, "kube-system", "kube-dns", "ClusterIP", o.ClusterDNS,
		port{"dns", "UDP", "", 53, o.DNSPort}, port{"dns-tcp", "TCP", "", 53, o.DNSPort})...)
	out = append(out, fixed(o, systemNamespace, "registry", "ClusterIP", netip.Addr{}, port{"http", "TCP", "", RegistryPort, o.RegistryPort})...)
	if o.MetricsPort != 0 {
		out = append(out, fixed(o, "kube-system", "metrics-server", "ClusterIP", netip.Addr{}, port{"https", "TCP", "", 443, o.MetricsPort})...)
		out = append(out, metricsAPI(o))
	}
	if o.ServingMetricsPort != 0 {
		out = append(out, metricsService(o)...)
	}
	return out
}

// metricsService is where Prometheus finds the metrics of Serving's parts, in
// the way that most of its configurations look for: by annotations, or by the
// name of a port.
func metricsService(o Options) []*unstructured.Unstructured {
	out := fixed(o, servingNamespace, "serving-metrics", "ClusterIP", netip.Addr{}, port{"http-metrics", "TCP", "", 9090, o.ServingMetricsPort})
	for _, u := range out {
		labels := u.GetLabels()
		labels["app.kubernetes.io/component"] = "metrics"
		u.SetLabels(labels)
	}
	out[0].SetAnnotations(map[string]string{
		"prometheus.io/scrape": "true", "prometheus.io/path": "/metrics", "prometheus.io/port": strconv.Itoa(int(o.ServingMetricsPort)),
	})
	return out
}

// fixed is a Service without pods: its only endpoint is this machine.
func fixed(o Options, namespace, name, kind string, clusterIP netip.Addr, ports ...port) []*unstructured.Unstructured {
	var outside, inside []any
	for _, p := range ports {
		out := object{"name": p.name, "protocol": p.protocol, "port": int64(p.number), "targetPort": int64(p.target)}
		in := object{"name": p.name, "protocol": p.protocol, "port": int64(p.target)}
		if p.appProtocol != "" {
			out["appProtocol"], in["appProtocol"] = p.appProtocol, p.appProtocol
		}
		outside, inside = append(outside, out), append(inside, in)
	}
	spec := object{"type": kind, "ports": outside}
	if clusterIP.IsValid() {
		spec["clusterIP"] = clusterIP.String()
	}
	if kind == "LoadBalancer" {
		spec["allocateLoadBalancerNodePorts"] = false
	}
	svc := build("v1", "Service", namespace, name, object{"spec": spec})
	if name == "kube-dns" {
		labels := svc.GetLabels()
		labels["k8s-app"], labels["kubernetes.io/cluster-service"], labels["kubernetes.io/name"] = "kube-dns", "true", "CoreDNS"
		svc.SetLabels(labels)
	}
	slice := build("discovery.k8s.io/v1", "EndpointSlice", namespace, name, object{
		"addressType": "IPv4",
		"endpoints":   []any{object{"addresses": []any{o.HostIP.String()}, "conditions": object{"ready": true}}},
		"ports":       inside,
	})
	labels := slice.GetLabels()
	labels["kubernetes.io/service-name"], labels["endpointslice.kubernetes.io/managed-by"] = name, manager
	slice.SetLabels(labels)
	return []*unstructured.Unstructured{svc, slice}
}

func metricsAPI(o Options) *unstructured.Unstructured {
	spec := object{
		"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
		"service": object{"namespace": "kube-system", "name": "metrics-server", "port": int64(443)},
	}
	if len(o.MetricsCA) > 0 {
		spec["caBundle"] = base64.StdEncoding.EncodeToString(o.MetricsCA)
	} else {
		spec["insecureSkipTLSVerify"] = true
	}
	return build("apiregistration.k8s.io/v1", "APIService", "", "v1beta1.metrics.k8s.io", object{"spec": spec})
}
