// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/serving/pkg/apis/config"
	autoscaler "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/deployment"
	"knative.dev/serving/pkg/gc"
	domain "knative.dev/serving/pkg/reconciler/route/config"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

const (
	settingsNamespace = "knative-serving"
	observability     = "config-observability"
	logURLKey         = "logging.revision-url-template"
	varLogKey         = "logging.enable-var-log-collection"
)

// settingsSource reads the settings from the cache and parses what has changed since.
type settingsSource struct {
	reader        client.Reader
	clusterDomain string
	log           *slog.Logger

	mu       sync.Mutex
	versions map[string]string
	current  *desired.Settings
	known    bool // nothing has changed since they were read
}

// invalidate has the settings read again. Whoever reconciles for a change of them calls it
// first.
func (s *settingsSource) invalidate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = false
}

// A reader takes over what a ConfigMap says.
type settingsReader func(data *corev1.ConfigMap, s *desired.Settings) error

var settingsReaders = map[string]settingsReader{
	autoscaler.ConfigName:          readAutoscaler,
	config.DefaultsConfigName:      readDefaults,
	config.FeaturesConfigName:      readFeatures,
	deployment.ConfigName:          readDeployment,
	domain.DomainConfigName:        readDomain,
	gc.ConfigName:                  readCollector,
	networkingconfig.ConfigMapName: readNetwork,
	observability:                  readObservability,
}

// load returns the settings of the moment. They are shared: nobody changes them.
func (s *settingsSource) load(ctx context.Context) (*desired.Settings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known {
		return s.current, nil
	}
	found := make(map[string]*corev1.ConfigMap, len(settingsReaders))
	for name := range settingsReaders {
		cm, err := known[corev1.ConfigMap](ctx, s.reader, settingsNamespace, name)
		if err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
		found[name] = cm
	}
	if s.current == nil {
		s.current, s.versions = &desired.Settings{ClusterDomain: s.clusterDomain}, map[string]string{}
		for name, read := range settingsReaders {
			if err := read(&corev1.ConfigMap{}, s.current); err != nil {
				return nil, fmt.Errorf("defaults of %s: %w", name, err)
			}
		}
	}
	s.take(found)
	s.known = true
	return s.current, nil
}

// take parses the ConfigMaps that have changed into a new value of the settings.
func (s *settingsSource) take(found map[string]*corev1.ConfigMap) {
	next := *s.current
	changed := false
	for _, name := range slices.Sorted(maps.Keys(found)) {
		cm := found[name]
		if cm == nil {
			cm = &corev1.ConfigMap{}
		}
		version := string(cm.UID) + "/" + cm.ResourceVersion
		if s.versions[name] == version {
			continue
		}
		s.versions[name] = version
		changed = true
		part := next
		if err := settingsReaders[name](cm, &part); err != nil {
			s.log.Error("settings cannot be read; the ones before stay", "configmap", name, "error", err)
			continue
		}
		next = part
	}
	if changed {
		s.current = &next
	}
}

func readAutoscaler(cm *corev1.ConfigMap, s *desired.Settings) error {
	c, err := autoscaler.NewConfigFromConfigMap(cm)
	if err != nil {
		return err
	}
	s.InitialScale = c.InitialScale
	return nil
}

func readDefaults(cm *corev1.ConfigMap, s *desired.Settings) (err error) {
	s.Defaults, err = config.NewDefaultsConfigFromConfigMap(cm)
	return err
}

func readFeatures(cm *corev1.ConfigMap, s *desired.Settings) (err error) {
	s.Features, err = config.NewFeaturesConfigFromConfigMap(cm)
	return err
}

func readNetwork(cm *corev1.ConfigMap, s *desired.Settings) (err error) {
	s.Network, err = networkingconfig.NewConfigFromConfigMap(cm)
	return err
}

func readDeployment(cm *corev1.ConfigMap, s *desired.Settings) error {
	data := map[string]string{deployment.QueueSidecarImageKey: "none"} // there is no such container
	maps.Copy(data, cm.Data)
	c, err := deployment.NewConfigFromMap(data)
	if err != nil {
		return err
	}
	s.ProgressDeadline, s.DigestTimeout = c.ProgressDeadline, c.DigestResolutionTimeout
	s.SpreadOverNodes = c.DefaultAffinityType == deployment.PreferSpreadRevisionOverNodes
	s.Schedulable = c.PodIsAlwaysSchedulable
	s.SkipTags = map[string]bool{}
	for r := range c.RegistriesSkippingTagResolving {
		s.SkipTags[r] = true
	}
	s.RuntimeClasses = nil
	for name, selector := range c.RuntimeClassNames {
		s.RuntimeClasses = append(s.RuntimeClasses, desired.RuntimeClass{Name: name, Selector: selector.Selector})
	}
	return nil
}

func readDomain(cm *corev1.ConfigMap, s *desired.Settings) error {
	c, err := domain.NewDomainFromConfigMap(cm)
	if err != nil {
		return err
	}
	s.Domains = nil
	for name, d := range c.Domains {
		out := desired.Domain{Name: name}
		if d.Selector != nil {
			out.Selector = d.Selector.Selector
		}
		s.Domains = append(s.Domains, out)
	}
	return nil
}

func readCollector(cm *corev1.ConfigMap, s *desired.Settings) error {
	c, err := gc.NewConfigFromConfigMapFunc(context.Background())(cm)
	if err != nil {
		return err
	}
	s.GC = desired.Retention{
		SinceCreate: c.RetainSinceCreateTime, SinceActive: c.RetainSinceLastActiveTime,
		Min: c.MinNonActiveRevisions, Max: c.MaxNonActiveRevisions,
	}
	return nil
}

func readObservability(cm *corev1.ConfigMap, s *desired.Settings) error {
	s.LogURLTemplate, s.VarLog = cm.Data[logURLKey], false
	if v, ok := cm.Data[varLogKey]; ok {
		var err error
		if s.VarLog, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%s: %w", varLogKey, err)
		}
	}
	return nil
}
