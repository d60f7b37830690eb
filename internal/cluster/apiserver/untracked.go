// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
)

// untrackedPlugin is its name in the admission chain.
const untrackedPlugin = "UntrackedFields"

// untrackedKinds have no controller, yet nobody applies them.
var untrackedKinds = map[schema.GroupResource]bool{
	{Resource: "events"}:                                    true,
	{Group: "events.k8s.io", Resource: "events"}:            true,
	{Group: "coordination.k8s.io", Resource: "leases"}:      true,
	{Group: "discovery.k8s.io", Resource: "endpointslices"}: true,
}

// untracked takes the record of who set which field off the new objects that
// a controller owns. From then on the server keeps none for them, until
// somebody applies one server-side: upstream's own rule for objects without a
// record. See docs/decisions/managed-fields.md.
type untracked struct{}

var _ admission.MutationInterface = untracked{}

// Handles implements admission.Interface.
func (untracked) Handles(op admission.Operation) bool { return op == admission.Create }

// Admit implements admission.MutationInterface.
func (untracked) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetSubresource() != "" {
		return nil
	}
	object, err := meta.Accessor(a.GetObject())
	if err != nil {
		return nil // not an object that could have a record
	}
	if untrackedKinds[a.GetResource().GroupResource()] || metav1.GetControllerOfNoCopy(object) != nil {
		object.SetManagedFields(nil)
	}
	return nil
}
