// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/pkg/configmap"
	o11yconfigmap "knative.dev/pkg/observability/configmap"
	"knative.dev/serving/pkg/apis/config"
	autoscaler "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/deployment"
	"knative.dev/serving/pkg/gc"
	observability "knative.dev/serving/pkg/observability/configmap"
	domain "knative.dev/serving/pkg/reconciler/route/config"
)

const settingsNamespace = "knative-serving"

// parsers say of each ConfigMap with settings why it cannot be taken.
var parsers = map[string]func(*corev1.ConfigMap) error{
	autoscaler.ConfigName:          parser(autoscaler.NewConfigFromConfigMap),
	config.DefaultsConfigName:      parser(config.NewDefaultsConfigFromConfigMap),
	config.FeaturesConfigName:      parser(config.NewFeaturesConfigFromConfigMap),
	deployment.ConfigName:          parser(parseDeployment),
	domain.DomainConfigName:        parser(domain.NewDomainFromConfigMap),
	gc.ConfigName:                  parser(gc.NewConfigFromConfigMapFunc(context.Background())),
	networkingconfig.ConfigMapName: parser(networkingconfig.NewConfigFromConfigMap),
	o11yconfigmap.DefaultName:      parser(observability.Parse),
	kourierName:                    parser(parseKourier),
}

func parser[T any](parse func(*corev1.ConfigMap) (T, error)) func(*corev1.ConfigMap) error {
	return func(c *corev1.ConfigMap) error {
		_, err := parse(c)
		return err
	}
}

// kourierName is the ConfigMap of the gateway that comes with Knative.
const kourierName = "config-kourier"

// parseKourier reads the one setting of it that is known here.
func parseKourier(c *corev1.ConfigMap) (accessLog bool, err error) {
	return accessLog, configmap.Parse(c.Data, configmap.AsBool("enable-service-access-logging", &accessLog))
}

// parseDeployment does without an image for the queue's container: there is no such container.
func parseDeployment(c *corev1.ConfigMap) (*deployment.Config, error) {
	data := map[string]string{deployment.QueueSidecarImageKey: "none"}
	maps.Copy(data, c.Data)
	return deployment.NewConfigFromMap(data)
}

// ValidateConfigMap says why a ConfigMap with settings cannot be taken. Others pass.
func ValidateConfigMap(c *corev1.ConfigMap) error {
	parse, ok := parsers[c.Name]
	if !ok || c.Namespace != settingsNamespace {
		return nil
	}
	example, hasExample := c.Data[configmap.ExampleKey]
	sum, hasSum := c.Annotations[configmap.ExampleChecksumAnnotation]
	if hasExample && hasSum && sum != configmap.Checksum(example) {
		return fmt.Errorf("the update modifies a key in %q which is probably not what you want. "+
			"Instead, copy the respective setting to the top-level of the ConfigMap, directly below %q",
			configmap.ExampleKey, "data")
	}
	return parse(c)
}

func (c *Control) validateConfigMap(a admission.Attributes, o admission.ObjectInterfaces) error {
	if a.GetNamespace() != settingsNamespace || a.GetSubresource() != "" || a.GetResource().Group != "" {
		return nil
	}
	name := a.GetName()
	if _, ok := parsers[name]; !ok {
		return nil
	}
	// The API server holds an internal form, which only it knows.
	v1 := schema.GroupVersion{Version: "v1"}
	obj, err := o.GetObjectConvertor().ConvertToVersion(a.GetObject(), v1)
	if err != nil {
		return fmt.Errorf("convert ConfigMap %s: %w", name, err)
	}
	cm, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return fmt.Errorf("convert ConfigMap %s: got %T", name, obj)
	}
	if err := ValidateConfigMap(cm); err != nil {
		return refusal(configWebhook, fmt.Errorf("validation failed: %w", err))
	}
	return nil
}

// settings keeps the parsed form of the three ConfigMaps that decide on objects, so that a
// request does not parse them again.
type settings struct {
	last atomic.Pointer[parsed]
}

type parsed struct {
	from   [3]*corev1.ConfigMap
	config *config.Config
}

// into returns ctx with the settings of the moment, as upstream's types expect them there.
func (s *settings) into(ctx context.Context, get func(string) *corev1.ConfigMap) context.Context {
	var from [3]*corev1.ConfigMap
	if get != nil {
		from = [3]*corev1.ConfigMap{get(config.DefaultsConfigName), get(config.FeaturesConfigName), get(autoscaler.ConfigName)}
	}
	p := s.last.Load()
	if p == nil || !same(p.from, from) {
		p = parse(from, p)
		s.last.Store(p)
	}
	return config.ToContext(ctx, p.config.DeepCopy())
}

func same(a, b [3]*corev1.ConfigMap) bool {
	for i := range a {
		switch {
		case a[i] == b[i]:
		case a[i] == nil || b[i] == nil:
			return false
		case a[i].UID != b[i].UID || a[i].ResourceVersion != b[i].ResourceVersion:
			return false
		}
	}
	return true
}

// parse reads the settings. What cannot be read keeps its last good value, or the default.
func parse(from [3]*corev1.ConfigMap, last *parsed) *parsed {
	p := &parsed{from: from, config: config.FromContextOrDefaults(context.Background())}
	if last != nil {
		*p.config = *last.config
	}
	if d, err := config.NewDefaultsConfigFromConfigMap(orEmpty(from[0])); err == nil {
		p.config.Defaults = d
	}
	if f, err := config.NewFeaturesConfigFromConfigMap(orEmpty(from[1])); err == nil {
		p.config.Features = f
	}
	if a, err := autoscaler.NewConfigFromConfigMap(orEmpty(from[2])); err == nil {
		p.config.Autoscaler = a
	}
	return p
}

func orEmpty(c *corev1.ConfigMap) *corev1.ConfigMap {
	if c == nil {
		return &corev1.ConfigMap{}
	}
	return c
}
