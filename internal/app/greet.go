// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// greet tells what is up, deploys the sample on the first start and says what to try next.
func greet(ctx context.Context, s Settings, o UpOptions, view *progress) error {
	view.line("Ready in %.1f s.\n", time.Since(view.began).Seconds())
	view.line("  Kubernetes API  https://127.0.0.1:%d  (kubeconfig %s)", s.APIPort, s.Kubeconfig())
	view.line("  Services        http://NAME.NAMESPACE.%s%s", s.Domain, s.URLSuffix())
	view.line("  HTTPS           https://NAME.NAMESPACE.%s%s where external-domain-tls is on  (authority %s)", s.Domain, s.SecureSuffix(), s.ServicesCA())
	view.line("  Images          %s  (docker push, crane push)", s.RegistryHost())
	if o.MergeKubeconfig {
		path, err := mergeKubeconfig(s)
		if err != nil {
			return err
		}
		view.line("  Context         %q in %s", contextName, path)
	}
	url := ""
	if o.Deploy != "" {
		var err error
		if url, err = deployOnce(ctx, s, o, view); err != nil {
			return fmt.Errorf("deploy %s: %w", o.Deploy, err)
		}
	}
	view.line("\nTry next, in another shell:")
	view.line("  export KUBECONFIG=%s", s.Kubeconfig())
	if url != "" {
		view.line("  curl %s", url)
		view.line("  kn service create web --image %s/%s --env RESPONSE=hi", s.RegistryHost(), "hello")
	} else {
		view.line("  sonagi deploy DIR        # a Go program becomes a service")
	}
	view.line("  kubectl get ksvc,pods -A  # or: sonagi kubectl get ksvc,pods -A")
	view.line("\nCtrl-C stops everything; \"sonagi down --purge\" leaves nothing behind.")
	return nil
}

// deployOnce deploys the sample if no earlier start of this data directory did.
func deployOnce(ctx context.Context, s Settings, o UpOptions, view *progress) (url string, err error) {
	mark := s.Path("sample")
	if text, err := os.ReadFile(mark); err == nil {
		view.line("\n%s", text)
		return string(text), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	view.line("\nDeploying %s (first start only):", o.Deploy)
	url, err = Deploy(ctx, s, DeployOptions{Dir: o.Deploy, Namespace: "default", Timeout: 2 * time.Minute, Out: view.out})
	if err != nil {
		return "", err
	}
	view.line("\n%s", url)
	return url, writeFile(mark, []byte(url), 0o644)
}
