// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"io"
	"net/http"
	"time"
)

// Two of upstream's start-up steps, the default roles and the system priority
// classes, begin with a second of sleep. Where they have run before, what
// they make is there, and nobody has to wait for them to find that out.
const (
	readyPath     = "/readyz"
	nearReadyPath = readyPath + "?exclude=poststarthook/rbac/bootstrap-roles&exclude=poststarthook/scheduling/bootstrap-system-priority-classes"
	rolePath      = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:basic-user"
	classPath     = "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical"
)

// awaitReady asks the server itself until it says yes. Upstream has no event
// for it: its checks are functions that are called when somebody asks.
func (s *Server) awaitReady(ctx context.Context) {
	const interval = 5 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for !s.isReady(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	close(s.ready)
}

func (s *Server) isReady(ctx context.Context) bool {
	return s.says(ctx, nearReadyPath) && (s.says(ctx, rolePath) && s.says(ctx, classPath) || s.says(ctx, readyPath))
}

// says reports whether the server answers a path with 200.
func (s *Server) says(ctx context.Context, path string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, loopbackHost+path, nil)
	if err != nil {
		return false
	}
	request.Header.Set("Authorization", "Bearer "+s.loop.token)
	client := http.Client{Transport: s.loop}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err == nil && response.StatusCode == http.StatusOK
}
