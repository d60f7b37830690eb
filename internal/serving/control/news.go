// SPDX-License-Identifier: Apache-2.0

package control

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"

	"golang.org/x/time/rate"
)

// news tells people through events. An event is a write like any other, so that good news are
// told as far as somebody can be reading them: who creates hundreds of services at a time
// does not read eight events of each. Bad news are told always.
type news struct {
	recorder events.EventRecorder
	good     *rate.Limiter
}

func newNews(r events.EventRecorder) *news {
	return &news{recorder: r, good: rate.NewLimiter(2, 20)}
}

// tell tells that all is well with an object, and with another one if the news are about both.
// Events of the same reason about the same objects become one.
func (n *news) tell(about, with runtime.Object, reason, format string, args ...any) {
	if n.good.Allow() {
		n.recorder.Eventf(about, with, corev1.EventTypeNormal, reason, "Reconcile", format, args...)
	}
}

func (n *news) warn(about runtime.Object, reason, format string, args ...any) {
	n.recorder.Eventf(about, nil, corev1.EventTypeWarning, reason, "Reconcile", format, args...)
}
