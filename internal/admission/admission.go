// SPDX-License-Identifier: Apache-2.0

// Package admission defaults and validates objects on their way in.
//
// The decisions are upstream's own: its types default and validate themselves. This room
// hands them the settings of the moment, and refuses in the words in which Knative's
// webhooks refuse, since people and scripts know those. It runs inside the API server,
// without a webhook's round trip; requests for other kinds pass at the price of a map look-up,
// and so do status writes, which upstream neither defaults nor validates.
package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/warning"
	"knative.dev/pkg/apis"
)

// The names under which Knative registers its webhooks; refusals carry them.
const (
	defaultingWebhook = "webhook.serving.knative.dev"
	validatingWebhook = "validation.webhook.serving.knative.dev"
	configWebhook     = "config.webhook.serving.knative.dev"
)

// Options are what admission needs of the world.
type Options struct {
	// ConfigMap returns a ConfigMap of the namespace knative-serving, or nil. It is asked on
	// each request and must answer from a cache.
	ConfigMap func(name string) *corev1.ConfigMap
	// DryRunPod has the API server check a pod without keeping it. It is asked when a client
	// creates or changes a Service or Configuration with --dry-run=server. It may be nil.
	DryRunPod func(context.Context, *corev1.Pod) error
}

// A Control is the admission plugin.
type Control struct {
	options  Options
	settings settings
}

var (
	_ admission.MutationInterface   = (*Control)(nil)
	_ admission.ValidationInterface = (*Control)(nil)
)

// Plugin returns admission for serving objects and their settings.
func Plugin(o Options) *Control {
	return &Control{options: o}
}

// Handles implements admission.Interface.
func (c *Control) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Admit defaults a serving object.
func (c *Control) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	k, obj := concerned(a)
	if obj == nil {
		return nil
	}
	r, err := c.review(k, obj, a, true)
	if err != nil {
		return refusal(defaultingWebhook, fmt.Errorf("mutation failed: %w", err))
	}
	Default(r.ctx, r.object)
	if err := r.writeBack(obj); err != nil {
		return refusal(defaultingWebhook, fmt.Errorf("mutation failed: %w", err))
	}
	return nil
}

// Validate validates a serving object or a ConfigMap with settings.
func (c *Control) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if a.GetResource().Resource == "configmaps" {
		return c.validateConfigMap(a, o)
	}
	k, obj := concerned(a)
	if obj == nil {
		return nil
	}
	r, err := c.review(k, obj, a, false)
	if err != nil {
		return refusal(validatingWebhook, fmt.Errorf("decoding request failed: %w", err))
	}
	warnings, err := Validate(r.ctx, r.object)
	for _, w := range warnings {
		warning.AddWarning(ctx, "", w)
	}
	if err != nil {
		return refusal(validatingWebhook, fmt.Errorf("validation failed: %w", err))
	}
	if a.IsDryRun() && c.options.DryRunPod != nil {
		if err := c.dryRun(ctx, r.object); err != nil {
			return refusal(validatingWebhook, fmt.Errorf("validation callback failed: %w", err))
		}
	}
	return nil
}

// Default defaults an object. Its context says what is being done to it, see Within.
func Default(ctx context.Context, obj Resource) {
	obj.SetDefaults(ctx)
}

// Validate returns what a person should know about the object, and why it cannot be taken.
func Validate(ctx context.Context, obj Resource) (warnings []string, err error) {
	found := obj.Validate(ctx)
	if found == nil {
		return nil, nil
	}
	if ws := found.Filter(apis.WarningLevel); ws != nil {
		for _, w := range ws.WrappedErrors() {
			warnings = append(warnings, w.Error())
		}
	}
	if errs := found.Filter(apis.ErrorLevel); errs != nil {
		err = errs
	}
	return warnings, err
}

// concerned returns the kind and the object of a request that this room decides on.
func concerned(a admission.Attributes) (*kind, *unstructured.Unstructured) {
	if a.GetSubresource() != "" {
		return nil, nil
	}
	k, ok := kinds[schema.GroupResource{Group: a.GetResource().Group, Resource: a.GetResource().Resource}]
	if !ok || a.GetKind().Version != k.version {
		return nil, nil
	}
	obj, _ := a.GetObject().(*unstructured.Unstructured)
	return &k, obj
}

// A review is one object under decision.
type review struct {
	ctx    context.Context
	object Resource
}

func (c *Control) review(k *kind, obj *unstructured.Unstructured, a admission.Attributes, defaultOld bool) (*review, error) {
	r := &review{object: k.new()}
	if err := decode(obj, r.object); err != nil {
		return nil, fmt.Errorf("cannot decode incoming new object: %w", err)
	}
	ctx := c.settings.into(context.Background(), c.options.ConfigMap)
	if before, ok := a.GetOldObject().(*unstructured.Unstructured); ok && a.GetOperation() == admission.Update {
		old := k.new()
		if err := decode(before, old); err != nil {
			return nil, fmt.Errorf("cannot decode incoming old object: %w", err)
		}
		if defaultOld {
			// What was stored may lack defaults that have come since; they are no change of the user's.
			old.SetDefaults(ctx)
		}
		ctx = apis.WithinUpdate(ctx, old)
	} else {
		ctx = apis.WithinCreate(ctx)
	}
	if a.IsDryRun() {
		ctx = apis.WithDryRun(ctx)
	}
	r.ctx = apis.WithUserInfo(ctx, userInfo(a.GetUserInfo()))
	return r, nil
}

// decode fills a typed object. The text of its error is that of encoding/json, which
// Knative's users know, although the quicker way is tried first.
func decode(from *unstructured.Unstructured, into Resource) error {
	if runtime.DefaultUnstructuredConverter.FromUnstructured(from.Object, into) == nil {
		return nil
	}
	data, err := json.Marshal(from.Object)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// writeBack puts what defaulting may have changed, annotations and spec, into the request.
func (r *review) writeBack(obj *unstructured.Unstructured) error {
	full, err := runtime.DefaultUnstructuredConverter.ToUnstructured(r.object)
	if err != nil {
		return fmt.Errorf("encode defaulted object: %w", err)
	}
	if annotations := r.object.GetAnnotations(); !maps.Equal(annotations, obj.GetAnnotations()) {
		obj.SetAnnotations(annotations)
	}
	if spec, ok := full["spec"]; ok {
		obj.Object["spec"] = spec
	}
	return nil
}

// dryRun has the pod that a template would lead to checked as the API server checks pods.
func (c *Control) dryRun(ctx context.Context, obj Resource) error {
	pod := templatePod(obj)
	if pod == nil {
		return nil
	}
	if err := c.options.DryRunPod(ctx, pod); err != nil {
		return apis.ErrGeneric("dry run failed with "+err.Error(), "spec.template")
	}
	return nil
}

func userInfo(u user.Info) *authenticationv1.UserInfo {
	if u == nil {
		return &authenticationv1.UserInfo{}
	}
	return &authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
}

// refusal words an error as the API server words that of a webhook.
func refusal(webhook string, err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q denied the request: %v", webhook, err))
}
