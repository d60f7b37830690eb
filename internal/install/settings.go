// SPDX-License-Identifier: Apache-2.0

package install

import (
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"knative.dev/pkg/configmap"
	"knative.dev/serving/pkg/observability"
)

const exampleKey = configmap.ExampleKey

// configMaps are the settings, with what this platform sets apart from Knative's defaults,
// and an example that lists each key with its default.
func configMaps(o Options) []*unstructured.Unstructured {
	ours := map[string]object{
		"config-domain": {o.Domain: ""},
		// There is no container for the queue, and one machine to spread pods over.
		"config-deployment": {"queue-sidecar-image": "none", "default-affinity-type": "none"},
	}
	components := map[string]string{"config-autoscaler": "autoscaler", "config-network": "networking", "config-observability": "observability"}
	var out []*unstructured.Unstructured
	for _, e := range examples {
		data := object{exampleKey: intro + e.text}
		for key, v := range ours[e.name] {
			data[key] = v
		}
		u := configMap(servingNamespace, e.name, data)
		labels := u.GetLabels()
		labels["app.kubernetes.io/component"] = "controller"
		if c, ok := components[e.name]; ok {
			labels["app.kubernetes.io/component"] = c
		}
		u.SetLabels(labels)
		u.SetAnnotations(map[string]string{configmap.ExampleChecksumAnnotation: configmap.Checksum(intro + e.text)})
		out = append(out, u)
	}
	return out
}

const intro = `# Nothing in this block is read. Copy a line out of it, directly below "data",
# to set it. Each line shows the default.
`

type example struct{ name, text string }

var examples = []example{
	{"config-autoscaler", `
# Share of the concurrency limit that is aimed for, in percent.
container-concurrency-target-percentage: "70"
# Requests at a time per pod that are aimed for where no limit is set.
container-concurrency-target-default: "100"
# Requests per second per pod that are aimed for with the metric rps.
requests-per-second-target-default: "200"
# Spare requests that pods must be able to take before requests stop passing the activator.
# 0: only at zero pods do they pass it. -1: they always do.
target-burst-capacity: "211"
# Span over which the load is averaged.
stable-window: "60s"
# Span that shows a sudden rise, in percent of the stable window.
panic-window-percentage: "10.0"
# Rise over capacity, in percent, that counts as sudden.
panic-threshold-percentage: "200.0"
# Most pods after a decision, as a multiple of those before.
max-scale-up-rate: "1000.0"
# Most by which a decision may divide the pods.
max-scale-down-rate: "2.0"
# Whether a revision without requests loses its last pod.
enable-scale-to-zero: "true"
# How long the last pod may stay until requests are sure to be caught without it.
# Here they always are, so it goes when the window is over.
scale-to-zero-grace-period: "30s"
# How long the last pod is kept at least.
scale-to-zero-pod-retention-period: "0s"
# Autoscaler of revisions that name none.
pod-autoscaler-class: "kpa.autoscaling.knative.dev"
# Requests at a time that one activator is counted for.
activator-capacity: "100.0"
# Pods of a new revision.
initial-scale: "1"
allow-zero-initial-scale: "false"
# Fewest and most pods of a revision; 0 sets no bound.
min-scale: "0"
max-scale: "0"
# How long fewer pods must suffice before there are fewer.
scale-down-delay: "0s"
# Highest max-scale that a revision may ask for; 0 sets no bound.
max-scale-limit: "0"
`}, {"config-defaults", `
# Seconds until a request must be answered, and the most a revision may ask for.
revision-timeout-seconds: "300"
max-revision-timeout-seconds: "600"
# Seconds until the first byte of an answer.
revision-response-start-timeout-seconds: "300"
# Seconds without a byte; 0 sets no bound.
revision-idle-timeout-seconds: "0"
# Resources of containers that state none. Without these lines nothing is set.
revision-cpu-request: "400m"
revision-memory-request: "100M"
revision-ephemeral-storage-request: "500M"
revision-cpu-limit: "1000m"
revision-memory-limit: "200M"
revision-ephemeral-storage-limit: "750M"
# Names of containers without one; a template over the parent's metadata.
container-name-template: "user-container"
init-container-name-template: "init-container"
# Requests at a time per pod; 0 sets no bound.
container-concurrency: "0"
# The most a revision may ask for, and whether it may ask for no bound.
container-concurrency-max-limit: "1000"
allow-container-concurrency-zero: "true"
# Whether Services appear in the environment: true, false or default (Kubernetes decides).
enable-service-links: "false"
`}, {"config-deployment", `
# Registries whose tags stay tags.
registries-skipping-tag-resolving: "kind.local,ko.local,dev.local"
# How long a registry may take to say which digest a tag has.
digest-resolution-timeout: "10s"
# How long a revision may take to become ready.
progress-deadline: "600s"
# prefer-spread-revision-over-nodes or none.
default-affinity-type: "prefer-spread-revision-over-nodes"
# Runtime classes, each with a selector over a revision's labels.
runtime-class-name: ""
# Whether a pod that cannot be scheduled yet is left out of a revision's status.
pod-is-always-schedulable: "false"
`}, {"config-domain", `
# A domain for routes with certain labels; the longest match wins.
example.org: |
  selector:
    app: nonprofit
# A domain for all others.
example.com: ""
# Routes under this domain are not visible from outside.
svc.cluster.local: |
  selector:
    app: secret
`}, {"config-features", `
# enabled: on. allowed: on for revisions that ask for it by annotation. disabled: off.
# What was on and is in use cannot be turned off safely.
` + strings.TrimSpace(`
secure-pod-defaults: "disabled"
multi-container: "enabled"
multi-container-probing: "disabled"
kubernetes.podspec-affinity: "disabled"
kubernetes.podspec-topologyspreadconstraints: "disabled"
kubernetes.podspec-hostaliases: "disabled"
kubernetes.podspec-nodeselector: "disabled"
kubernetes.podspec-tolerations: "disabled"
kubernetes.podspec-fieldref: "disabled"
kubernetes.podspec-runtimeclassname: "disabled"
kubernetes.podspec-dnspolicy: "disabled"
kubernetes.podspec-dnsconfig: "disabled"
kubernetes.podspec-securitycontext: "disabled"
kubernetes.podspec-shareprocessnamespace: "disabled"
kubernetes.podspec-hostipc: "disabled"
kubernetes.podspec-hostpid: "disabled"
kubernetes.podspec-hostnetwork: "disabled"
kubernetes.podspec-priorityclassname: "disabled"
kubernetes.podspec-schedulername: "disabled"
kubernetes.containerspec-addcapabilities: "disabled"
kubernetes.podspec-init-containers: "disabled"
kubernetes.podspec-persistent-volume-claim: "disabled"
kubernetes.podspec-persistent-volume-write: "disabled"
kubernetes.podspec-volumes-csi: "disabled"
kubernetes.podspec-volumes-emptydir: "enabled"
kubernetes.podspec-volumes-ephemeral: "disabled"
kubernetes.podspec-volumes-hostpath: "disabled"
kubernetes.podspec-volumes-image: "disabled"
kubernetes.podspec-volumes-mount-propagation: "disabled"
# Whether the header Knative-Serving-Tag chooses a tagged target.
tag-header-based-routing: "disabled"
# Whether it is found out by asking that a container speaks HTTP/2.
autodetect-http2: "disabled"
`) + "\n"}, {"config-gc", `
# A revision that no route leads to is deleted when it is older than both, or never with "disabled".
retain-since-create-time: "48h"
retain-since-last-active-time: "15h"
# So many of them are kept in any case, and no more than so many.
min-non-active-revisions: "20"
max-non-active-revisions: "1000"
`}, {"config-network", `
# Host name of a route, and the part of it that a tag gives.
domain-template: "{{.Name}}.{{.Namespace}}.{{.Domain}}"
tag-template: "{{.Tag}}-{{.Name}}"
# Scheme in URLs that are shown.
default-external-scheme: "http"
# Whether plain HTTP is served (Enabled) or sent on to HTTPS (Redirected).
http-protocol: "Enabled"
# Whether routes get certificates.
external-domain-tls: "Disabled"
# Seconds over which requests move to a new revision.
rollout-duration: "0"
# Whether a DomainMapping claims its domain by itself.
autocreate-cluster-domain-claims: "false"
`}, {"config-observability", `
# Where a revision's logs are found.
logging.revision-url-template: "http://logging.example.com/?revisionUID=${REVISION_UID}"
# Whether each request is logged, and how: a Go template in one line. The log of a revision is
# logs/requests/NAMESPACE/REVISION.log in the data directory; "sonagi logs SERVICE --requests" prints it.
# Known to the template: .Request (net/http's), .Response (Code, Size, Latency), .Revision (Name, Namespace,
# Service, Configuration, PodName, PodIP), .TraceID.
logging.enable-request-log: "false"
logging.request-log-template: '` + observability.DefaultRequestLogTemplate + `'
# Probes do not pass where requests are logged: this changes nothing.
logging.enable-probe-request-log: "false"
# Where traces go: none, grpc or http/protobuf (OTLP), or stdout. The endpoint belongs to grpc and http/protobuf.
tracing-protocol: "none"
tracing-endpoint: ""
# Share of requests that are traced, from 0 to 1, where no caller has decided.
tracing-sampling-rate: "0"
# Prometheus finds all metrics at the Service serving-metrics, whatever is set here. Metrics of requests can be
# sent to a collector as well: grpc or http/protobuf (OTLP).
request-metrics-protocol: "none"
request-metrics-endpoint: ""
request-metrics-export-interval: "60s"
# Profiles of the node process under /debug/pprof/, beside the metrics.
runtime-profiling: "disabled"
`}, {"config-kourier", `
# Whether the gateway writes a line for each request to logs/access.log in the data directory, in Envoy's format.
enable-service-access-logging: "false"
`}}
