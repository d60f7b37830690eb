// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"math/rand/v2"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/autoscaler/aggregation"
	"knative.dev/serving/pkg/autoscaler/scaling"
)

// These tests hold the arithmetic to Knative's own, step by step, on random
// histories.

type averager interface {
	Record(time.Time, float64)
	WindowAverage(time.Time) float64
	IsEmpty(time.Time) bool
}

func TestWindowIsKnatives(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		spec := &Spec{
			StableWindow: time.Duration(6+r.IntN(60)) * time.Second,
			PanicWindow:  time.Duration(1+r.IntN(6)) * time.Second,
			Weighted:     seed%3 == 0,
		}
		var stable, short averager = aggregation.NewTimedFloat64Buckets(spec.StableWindow, bucket), aggregation.NewTimedFloat64Buckets(spec.PanicWindow, bucket)
		if spec.Weighted {
			stable, short = aggregation.NewWeightedFloat64Buckets(spec.StableWindow, bucket), aggregation.NewWeightedFloat64Buckets(spec.PanicWindow, bucket)
		}
		var s State
		now := time.Unix(1_700_000_000, int64(r.IntN(1e9)))
		for step := range 400 {
			switch r.IntN(20) {
			case 0:
				now = now.Add(time.Duration(r.IntN(70)) * time.Second)
			case 1:
				now = now.Add(-time.Duration(r.IntN(3)) * time.Second)
			default:
				now = now.Add(time.Duration(r.IntN(2500)) * time.Millisecond)
			}
			if r.IntN(3) > 0 {
				value := 0.
				if r.IntN(3) > 0 {
					value = r.Float64() * 100
				}
				at := now.Add(-time.Duration(r.IntN(1500)) * time.Millisecond)
				s.Record(spec, at, time.Second, value, 0)
				stable.Record(at, value)
				short.Record(at, value)
			}
			if got, want := s.load.empty(now.Unix()), stable.IsEmpty(now); got != want && s.load.last != 0 {
				t.Fatalf("seed %d step %d: empty = %v, want %v", seed, step, got, want)
			}
			gotStable, gotPanic := s.load.average(spec, now.Unix())
			if wantStable, wantPanic := stable.WindowAverage(now), short.WindowAverage(now); !near(gotStable, wantStable) || !near(gotPanic, wantPanic) {
				t.Fatalf("seed %d step %d: averages %v, %v; want %v, %v", seed, step, gotStable, gotPanic, wantStable, wantPanic)
			}
		}
	}
}

func near(a, b float64) bool { return a-b < 2e-6 && b-a < 2e-6 }

// fed stands for Knative's collector and pod counter.
type fed struct {
	stable, panic float64
	ready         int
}

func (f *fed) StableAndPanicConcurrency(types.NamespacedName, time.Time) (float64, float64, error) {
	return f.stable, f.panic, nil
}

func (f *fed) StableAndPanicRPS(types.NamespacedName, time.Time) (float64, float64, error) {
	return f.stable, f.panic, nil
}

func (f *fed) ReadyCount() (int, error)    { return f.ready, nil }
func (f *fed) NotReadyCount() (int, error) { return 0, nil }

func TestRecommendationIsKnatives(t *testing.T) {
	logger := zap.NewNop().Sugar()
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		total := 1 + float64(r.IntN(100))
		spec := &Spec{
			Target: max(0.01, total*(0.1+0.9*r.Float64())), Total: total,
			StableWindow: time.Duration(6+r.IntN(60)) * time.Second, PanicWindow: 6 * time.Second,
			PanicThreshold: 1.1 + r.Float64()*3, MaxUpRate: 1.1 + r.Float64()*10, MaxDownRate: 1.1 + r.Float64()*3,
			DownDelay: time.Duration(r.IntN(3)*r.IntN(20)) * time.Second, BurstCapacity: []float64{-1, 0, 70, 211}[r.IntN(4)],
			Activation: int32(r.IntN(4)), Reachable: r.IntN(4) > 0, ToZero: true, ActivatorCapacity: 100,
		}
		their := &fed{}
		peer := scaling.New(*attribute.EmptySet(), metricnoop.NewMeterProvider(), "ns", "rev", their, their, &scaling.DeciderSpec{
			MaxScaleUpRate: spec.MaxUpRate, MaxScaleDownRate: spec.MaxDownRate, ScalingMetric: "concurrency",
			TargetValue: spec.Target, TotalValue: spec.Total, TargetBurstCapacity: spec.BurstCapacity, ActivatorCapacity: 100,
			PanicThreshold: spec.PanicThreshold, StableWindow: spec.StableWindow, ScaleDownDelay: spec.DownDelay,
			Reachable: spec.Reachable, ActivationScale: spec.Activation,
		})
		s := State{begun: true, desired: Unknown}
		begin := time.Unix(1_700_000_000, 0)
		now := begin
		load := 0.
		for step := range 300 {
			now = now.Add(time.Duration(1+r.IntN(3)) * time.Second)
			if r.IntN(5) == 0 {
				load = float64(r.IntN(3)) * r.Float64() * 300
			}
			s.Record(spec, now, time.Second, load, 0)
			seen := Seen{Ready: int32(their.ready), Replicas: s.desired, CoveredSince: begin, Covered: now}
			their.stable, their.panic = s.load.average(spec, now.Unix())
			s.begin(spec, now)
			s.born = begin
			var d Decision
			s.recommend(spec, seen, now, &d)
			want := peer.Scale(logger, now)
			if s.desired != want.DesiredPodCount || s.excess != want.ExcessBurstCapacity {
				t.Fatalf("seed %d step %d: %d pods, excess %d; want %+v", seed, step, s.desired, s.excess, want)
			}
			their.ready += r.IntN(3) * (int(s.desired) - their.ready) / 2
		}
	}
}
