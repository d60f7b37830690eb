// SPDX-License-Identifier: Apache-2.0

package apiserver

// gates differ from upstream's defaults. All of them serve clusters of
// several API servers, or work that nobody here looks at.
var gates = map[string]bool{
	// Leases by which several API servers know each other: a write every ten seconds.
	"APIServerIdentity": false,
	// A proxy between API servers of different versions.
	"UnknownVersionInteroperabilityProxy": false,
	// Lists every resource twice every five minutes, to find bugs of the watch cache.
	"DetectCacheInconsistency": false,
	// Sizes of all objects, polled, for the fair queues that are off.
	"SizeBasedListCostEstimate": false,
}

// served differs from upstream's defaults. Alpha and beta versions are off there already.
var served = map[string]string{
	// Fair queuing between clients is off: one machine has few clients, and a
	// plain bound on requests in flight remains. Objects that configure what
	// is off are not served.
	"flowcontrol.apiserver.k8s.io/v1": "false",
}
