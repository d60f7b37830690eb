// SPDX-License-Identifier: Apache-2.0

package install

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

const rbac = "rbac.authorization.k8s.io/v1"

func list(words ...string) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = w
	}
	return out
}

func rule(groups, resources, verbs []any) object {
	return object{"apiGroups": groups, "resources": resources, "verbs": verbs}
}

var (
	read     = list("get", "list", "watch")
	serving  = list("serving.knative.dev")
	internal = list("networking.internal.knative.dev", "autoscaling.internal.knative.dev", "caching.internal.knative.dev")
	all      = list("*")
)

// clusterRoles give people's roles their rights over serving objects, under the names and
// labels that Knative's users bind and aggregate, and the data plane what it reads.
func clusterRoles(o Options) []*unstructured.Unstructured {
	role := func(name string, label string, rules ...any) *unstructured.Unstructured {
		u := build(rbac, "ClusterRole", "", name, object{"rules": rules})
		labels := u.GetLabels()
		if label != "" {
			labels[label] = "true"
		}
		u.SetLabels(labels)
		return u
	}
	aggregate := build(rbac, "ClusterRole", "", "knative-serving-aggregated-addressable-resolver", object{
		"rules": []any{},
		"aggregationRule": object{"clusterRoleSelectors": []any{object{"matchLabels": object{
			"duck.knative.dev/addressable": "true"}}}},
	})
	return []*unstructured.Unstructured{
		role("knative-serving-namespaced-admin", "rbac.authorization.k8s.io/aggregate-to-admin",
			rule(serving, all, all), rule(internal, all, read)),
		role("knative-serving-namespaced-edit", "rbac.authorization.k8s.io/aggregate-to-edit",
			rule(serving, all, list("create", "update", "patch", "delete")), rule(internal, all, read)),
		role("knative-serving-namespaced-view", "rbac.authorization.k8s.io/aggregate-to-view",
			rule(append(append([]any{}, serving...), internal...), all, read)),
		aggregate,
		role("knative-serving-addressable-resolver", "duck.knative.dev/addressable",
			rule(serving, list("routes", "routes/status", "services", "services/status"), read)),
		role("knative-serving-podspecable-binding", "duck.knative.dev/podspecable",
			rule(serving, list("configurations", "services"), list("list", "watch", "patch"))),
		role("sonagi-data-plane", "",
			rule(append(append([]any{}, serving...), internal...), all, read),
			rule(list(""), list("services", "endpoints", "pods", "namespaces", "nodes"), read),
			rule(list("discovery.k8s.io"), list("endpointslices"), read),
			rule(list(""), list("secrets"), read), // certificates of hosts, which it asks for by type
			rule(list("", "events.k8s.io"), list("events"), list("create", "patch"))),
		bind("ClusterRole", "sonagi-data-plane", "", o.DataPlaneUser),
	}
}

// roles are the rights that end at a namespace.
func roles(o Options) []*unstructured.Unstructured {
	settings := rule(list(""), list("configmaps"), read)
	return []*unstructured.Unstructured{
		build(rbac, "Role", servingNamespace, "sonagi-data-plane", object{"rules": []any{settings}}),
		bind("Role", "sonagi-data-plane", servingNamespace, o.DataPlaneUser),
	}
}

// bind gives a user the role of the same name.
func bind(kind, name, namespace, user string) *unstructured.Unstructured {
	return build(rbac, kind+"Binding", namespace, name, object{
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
		"subjects": []any{object{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}},
	})
}
