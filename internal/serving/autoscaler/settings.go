// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"fmt"
	"math"
	"strings"
	"time"

	configmap "knative.dev/pkg/configmap"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	autoscalerconfig "knative.dev/serving/pkg/autoscaler/config"
	kpa "knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"

	"github.com/sonagi/sonagi/internal/serving/scale"
)

const (
	configAutoscaler = autoscalerconfig.ConfigName
	configDeployment = "config-deployment"

	defaultProgressDeadline = 600 * time.Second

	// activationBuffer is how much longer than its Deployment's progress
	// deadline a revision may take: the Deployment must have said first that
	// it failed, so that the revision can tell why.
	activationBuffer = 30 * time.Second
)

// settings are what the platform's ConfigMaps say about scaling.
type settings struct {
	kpa              *kpa.Config
	progressDeadline time.Duration
}

func defaultSettings() (settings, error) {
	cfg, err := autoscalerconfig.NewConfigFromMap(nil)
	if err != nil {
		return settings{}, fmt.Errorf("default scaling settings: %w", err)
	}
	return settings{cfg, defaultProgressDeadline}, nil
}

// with returns the settings after the named ConfigMap was changed to data.
func (s settings) with(name string, data map[string]string) (settings, error) {
	switch name {
	case configAutoscaler:
		cfg, err := autoscalerconfig.NewConfigFromMap(data)
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		s.kpa = cfg
	case configDeployment:
		deadline := defaultProgressDeadline
		if err := configmap.Parse(data,
			configmap.AsDuration("progressDeadline", &deadline),
			configmap.AsDuration("progress-deadline", &deadline),
		); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		s.progressDeadline = deadline
	}
	return s, nil
}

// spec returns how the revision of a PodAutoscaler wants to be scaled. What
// its annotations do not say, the settings do.
func (s settings) spec(pa *autoscalingv1alpha1.PodAutoscaler) scale.Spec {
	spec := scale.Spec{
		Weighted:          weighted(pa),
		StableWindow:      or(s.kpa.StableWindow)(pa.Window()),
		PanicThreshold:    or(s.kpa.PanicThresholdPercentage)(pa.PanicThresholdPercentage()) / 100,
		MaxUpRate:         s.kpa.MaxScaleUpRate,
		MaxDownRate:       s.kpa.MaxScaleDownRate,
		DownDelay:         or(s.kpa.ScaleDownDelay)(pa.ScaleDownDelay()),
		BurstCapacity:     or(s.kpa.TargetBurstCapacity)(pa.TargetBC()),
		ActivatorCapacity: s.kpa.ActivatorCapacity,
		Activation:        or[int32](0)(pa.ActivationScale()),
		Initial:           s.kpa.InitialScale,
		Reachable:         pa.Spec.Reachability != autoscalingv1alpha1.ReachabilityUnreachable,
		ToZero:            s.kpa.EnableScaleToZero,
		// The grace period bounds how long the last pod may stay until requests are sure to be
		// caught without it. Here they always are: there is nothing to wait for.
		Grace:             0,
		Retention:         or(s.kpa.ScaleToZeroPodRetentionPeriod)(pa.ScaleToZeroPodRetention()),
		ActivationTimeout: or(s.progressDeadline)(pa.ProgressDeadline()) + activationBuffer,
	}
	spec.PanicWindow = max(autoscalerconfig.BucketSize, time.Duration(float64(spec.StableWindow)*
		or(s.kpa.PanicWindowPercentage)(pa.PanicWindowPercentage())/100).Round(time.Second))
	if initial, ok := pa.InitialScale(); ok && (initial > 0 || s.kpa.AllowZeroInitialScale) {
		spec.Initial = initial
	}
	spec.Min, spec.Max = pa.ScaleBounds(s.kpa)
	spec.Metric, spec.Target, spec.Total = s.target(pa)
	return spec
}

// target returns what is measured, the value per pod to aim for, and the one
// that a pod can take.
func (s settings) target(pa *autoscalingv1alpha1.PodAutoscaler) (metric scale.Metric, target, total float64) {
	limit := float64(pa.Spec.ContainerConcurrency)
	use := s.kpa.ContainerConcurrencyTargetFraction
	total = limit
	switch {
	case pa.Metric() == autoscaling.RPS:
		metric, total, use = scale.RPS, s.kpa.RPSTargetDefault, s.kpa.TargetUtilization
	case limit == 0:
		total = s.kpa.ContainerConcurrencyTargetDefault
	}
	if wanted, ok := pa.Target(); ok {
		total = wanted
		if metric == scale.Concurrency && limit != 0 {
			// More than the container takes would never be reached.
			total = min(total, limit)
		}
	}
	target = max(autoscaling.TargetMin, total*or(use)(pa.TargetUtilization()))
	return metric, target, total
}

func weighted(pa *autoscalingv1alpha1.PodAutoscaler) bool {
	_, algorithm, _ := autoscaling.MetricAggregationAlgorithmAnnotation.Get(pa.Annotations)
	switch algorithm {
	case autoscaling.MetricAggregationAlgorithmWeightedExponential, autoscaling.MetricAggregationAlgorithmWeightedExponentialAlt:
		return true
	}
	return false
}

// or returns what an annotation says if it is there and makes sense.
func or[T int32 | float64 | time.Duration](otherwise T) func(T, bool) T {
	return func(said T, ok bool) T {
		if !ok || math.IsNaN(float64(said)) {
			return otherwise
		}
		return said
	}
}

// scaled reports whether the PodAutoscaler is for this autoscaler.
func scaled(pa *autoscalingv1alpha1.PodAutoscaler) bool {
	return pa.Class() == autoscaling.KPA && strings.EqualFold(pa.Spec.ScaleTargetRef.Kind, "Deployment")
}
