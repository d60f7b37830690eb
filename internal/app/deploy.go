// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/build"
	"github.com/sonagi/sonagi/internal/kube"
)

// DeployOptions name a source directory and the service that it becomes.
type DeployOptions struct {
	Dir       string
	Name      string // default: the directory's name
	Namespace string
	Env       []corev1.EnvVar
	Base      string // base image; empty: none, so nothing is fetched
	Timeout   time.Duration
	Out       io.Writer
}

// Deploy builds the directory into an image in the built-in registry, creates or
// updates the Knative service of that name, waits until it is ready and
// returns its URL.
func Deploy(ctx context.Context, s Settings, o DeployOptions) (string, error) {
	name, err := serviceName(o)
	if err != nil {
		return "", err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return "", errNotUp
	}
	api, err := kube.NewClient(cfg)
	if err != nil {
		return "", fmt.Errorf("%w (the API does not answer: %w)", errNotUp, err)
	}
	say := func(line string) { fmt.Fprintln(o.Out, "  "+line) }
	image, err := build.Go(ctx, build.Options{
		Dir: o.Dir, Base: o.Base, Repository: s.RegistryHost() + "/" + name, Progress: say,
	})
	if err != nil {
		return "", err
	}
	generation, err := putService(ctx, api, name, o, image)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("service %s was not ready after %s", name, o.Timeout))
	defer cancel()
	return waitReady(ctx, api, client.ObjectKey{Namespace: o.Namespace, Name: name}, generation, say)
}

var notDNS = regexp.MustCompile(`[^a-z0-9-]+`)

func serviceName(o DeployOptions) (string, error) {
	if o.Name != "" {
		return o.Name, nil
	}
	abs, err := filepath.Abs(o.Dir)
	if err != nil {
		return "", err
	}
	name := strings.Trim(notDNS.ReplaceAllString(strings.ToLower(filepath.Base(abs)), "-"), "-")
	if name == "" {
		return "", fmt.Errorf("no service name can be made of %s; give one with --name", abs)
	}
	return name, nil
}

// putService creates the service, or gives the one that exists the new image
// and, if there are any, the new variables. It returns the generation to wait for.
func putService(ctx context.Context, api client.Client, name string, o DeployOptions, image string) (int64, error) {
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: name}}
	err := api.Get(ctx, client.ObjectKeyFromObject(svc), svc)
	if apierrors.IsNotFound(err) {
		svc.Spec.Template.Spec.Containers = []corev1.Container{{Image: image, Env: o.Env}}
		if err := api.Create(ctx, svc); err != nil {
			return 0, fmt.Errorf("service %s: %w", name, err)
		}
		return svc.Generation, nil
	}
	if err != nil {
		return 0, fmt.Errorf("service %s: %w", name, err)
	}
	was := svc.DeepCopy()
	c := &svc.Spec.Template.Spec.Containers[0]
	c.Image = image
	if len(o.Env) > 0 {
		c.Env = o.Env
	}
	svc.Spec.Template.Name = "" // a name of one's own cannot be used twice
	if err := api.Patch(ctx, svc, client.MergeFrom(was)); err != nil {
		return 0, fmt.Errorf("service %s: %w", name, err)
	}
	return svc.Generation, nil
}

// waitReady follows the service until the given generation is ready, and tells
// each new reason for the wait once.
func waitReady(ctx context.Context, api client.WithWatch, key client.ObjectKey, generation int64, say func(string)) (string, error) {
	w, err := api.Watch(ctx, &servingv1.ServiceList{}, &client.ListOptions{
		Namespace: key.Namespace, FieldSelector: fields.OneTermEqualSelector("metadata.name", key.Name),
	})
	if err != nil {
		return "", fmt.Errorf("service %s: %w", key.Name, err)
	}
	defer w.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return "", errors.Join(context.Cause(ctx), lastWord(told))
		case e, open := <-w.ResultChan():
			if !open || e.Type == watch.Error {
				return "", fmt.Errorf("service %s: the watch ended", key.Name)
			}
			svc, ok := e.Object.(*servingv1.Service)
			if !ok || svc.Status.ObservedGeneration < generation {
				continue
			}
			ready := svc.Status.GetCondition(apis.ConditionReady)
			switch {
			case ready.IsTrue():
				return svc.Status.URL.String(), nil
			case ready.IsFalse():
				return "", fmt.Errorf("service %s is not ready: %s: %s", key.Name, ready.Reason, ready.Message)
			case ready != nil && ready.Message != "" && ready.Message != told:
				told = ready.Message
				say(told)
			}
		}
	}
}

func lastWord(told string) error {
	if told == "" {
		return nil
	}
	return errors.New("its last word: " + told)
}
