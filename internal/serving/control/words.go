// SPDX-License-Identifier: Apache-2.0

package control

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// Upstream's types take messages of others for formats. An app or a registry may well say "%",
// so what is handed to them is escaped first.

func literal(message string) string { return strings.ReplaceAll(message, "%", "%%") }

// verbatim is a status whose messages can be passed on.
func verbatim(s duckv1.Status) duckv1.Status {
	if slices.ContainsFunc(s.Conditions, func(c apis.Condition) bool { return strings.Contains(c.Message, "%") }) {
		s.Conditions = slices.Clone(s.Conditions)
		for i := range s.Conditions {
			s.Conditions[i].Message = literal(s.Conditions[i].Message)
		}
	}
	return s
}

// literally is a Deployment's status whose messages can be passed on. They are taken for
// formats twice on their way.
func literally(s *appsv1.DeploymentStatus) *appsv1.DeploymentStatus {
	out := *s
	out.Conditions = slices.Clone(s.Conditions)
	for i := range out.Conditions {
		out.Conditions[i].Message = literal(literal(out.Conditions[i].Message))
	}
	return &out
}
