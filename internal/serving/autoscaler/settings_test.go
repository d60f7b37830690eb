// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	kparesources "knative.dev/serving/pkg/reconciler/autoscaling/kpa/resources"
	paresources "knative.dev/serving/pkg/reconciler/autoscaling/resources"

	"github.com/sonagi/sonagi/internal/serving/scale"
)

// TestSpecIsKnatives reads random annotations and settings as Knative does.
func TestSpecIsKnatives(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		data := map[string]string{}
		for key, value := range map[string]string{
			"target-burst-capacity":                   pick(r, "-1", "0", "70"),
			"container-concurrency-target-percentage": pick(r, "70", "0.5", "100"),
			"container-concurrency-target-default":    pick(r, "10", "100"),
			"requests-per-second-target-default":      pick(r, "150", "300.5"),
			"panic-threshold-percentage":              pick(r, "200", "300"),
			"panic-window-percentage":                 pick(r, "10", "33"),
			"stable-window":                           pick(r, "60s", "37s"),
			"scale-down-delay":                        pick(r, "0s", "15m"),
			"scale-to-zero-pod-retention-period":      pick(r, "0s", "42s"),
			"scale-to-zero-grace-period":              pick(r, "30s", "10s"),
			"initial-scale":                           pick(r, "1", "2"),
			"allow-zero-initial-scale":                pick(r, "true", "false"),
			"min-scale":                               pick(r, "0", "1"),
			"max-scale":                               pick(r, "0", "30"),
			"max-scale-up-rate":                       pick(r, "10", "1000"),
		} {
			if r.IntN(2) == 0 {
				data[key] = value
			}
		}
		s, err := defaultSettings()
		if err != nil {
			t.Fatal(err)
		}
		if s, err = s.with(configAutoscaler, data); err != nil {
			t.Fatal(err)
		}
		pa := &autoscalingv1alpha1.PodAutoscaler{}
		pa.Annotations = map[string]string{autoscaling.ClassAnnotationKey: autoscaling.KPA}
		for key, value := range map[string]string{
			"target":                             pick(r, "1", "200", "0.001", "x"),
			"target-utilization-percentage":      pick(r, "1", "100"),
			"targetUtilizationPercentage":        pick(r, "33"),
			"target-burst-capacity":              pick(r, "-1", "0", "211"),
			"metric":                             pick(r, "rps", "concurrency"),
			"window":                             pick(r, "6s", "1h", "nonsense"),
			"panic-window-percentage":            pick(r, "1", "100"),
			"panicThresholdPercentage":           pick(r, "110", "1000"),
			"scale-down-delay":                   pick(r, "0s", "1h"),
			"scale-to-zero-pod-retention-period": pick(r, "0s", "1m"),
			"activation-scale":                   pick(r, "2", "5"),
			"initial-scale":                      pick(r, "0", "3"),
			"minScale":                           pick(r, "0", "4"),
			"max-scale":                          pick(r, "0", "9"),
			"metricAggregationAlgorithm":         pick(r, "linear", "weightedExponential", "weighted-exponential"),
		} {
			if r.IntN(3) == 0 {
				pa.Annotations[autoscaling.GroupName+"/"+key] = value
			}
		}
		pa.Spec.ContainerConcurrency = []int64{0, 1, 10, 1000}[r.IntN(4)]
		pa.Spec.Reachability = []autoscalingv1alpha1.ReachabilityType{"", autoscalingv1alpha1.ReachabilityReachable, autoscalingv1alpha1.ReachabilityUnreachable}[r.IntN(3)]

		decider, metric := kparesources.MakeDecider(pa, s.kpa).Spec, paresources.MakeMetric(pa, "", s.kpa)
		least, most := pa.ScaleBounds(s.kpa)
		want := scale.Spec{
			Target: decider.TargetValue, Total: decider.TotalValue,
			Weighted:     metric.AggregationAlgorithm() == autoscaling.MetricAggregationAlgorithmWeightedExponential,
			StableWindow: metric.Spec.StableWindow, PanicWindow: metric.Spec.PanicWindow,
			PanicThreshold: decider.PanicThreshold, MaxUpRate: decider.MaxScaleUpRate, MaxDownRate: decider.MaxScaleDownRate,
			DownDelay: decider.ScaleDownDelay, BurstCapacity: decider.TargetBurstCapacity, ActivatorCapacity: decider.ActivatorCapacity,
			Min: least, Max: most, Initial: decider.InitialScale, Activation: decider.ActivationScale, Reachable: decider.Reachable,
			ToZero: true, Retention: s.kpa.ScaleToZeroPodRetentionPeriod, ActivationTimeout: 630 * time.Second,
		}
		if decider.ScalingMetric == autoscaling.RPS {
			want.Metric = scale.RPS
		}
		if kept, ok := pa.ScaleToZeroPodRetention(); ok {
			want.Retention = kept
		}
		if got := s.spec(pa); got != want {
			t.Fatalf("seed %d: %v, %v:\n got %s\nwant %s", seed, data, pa.Annotations, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
		}
	}
}

func pick(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }

func TestProgressDeadline(t *testing.T) {
	s, err := defaultSettings()
	if err != nil {
		t.Fatal(err)
	}
	pa := &autoscalingv1alpha1.PodAutoscaler{}
	for _, tt := range []struct {
		data map[string]string
		said string
		want time.Duration
	}{
		{nil, "", 630 * time.Second},
		{map[string]string{"progress-deadline": "2m"}, "", 150 * time.Second},
		{map[string]string{"progressDeadline": "2m"}, "", 150 * time.Second},
		{map[string]string{"progress-deadline": "2m"}, "10s", 40 * time.Second},
		{map[string]string{"queue-sidecar-image": "x"}, "", 630 * time.Second},
	} {
		s, err := s.with(configDeployment, tt.data)
		if err != nil {
			t.Fatal(err)
		}
		pa.Annotations = map[string]string{"serving.knative.dev/progress-deadline": tt.said}
		if got := s.spec(pa).ActivationTimeout; got != tt.want {
			t.Errorf("%v %q: %v, want %v", tt.data, tt.said, got, tt.want)
		}
	}
	if _, err := s.with(configDeployment, map[string]string{"progress-deadline": "soon"}); err == nil {
		t.Error("nonsense is taken")
	}
}
