// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/kube"
)

// Status prints the processes, the addresses and the services in one screen.
func Status(ctx context.Context, s Settings, out io.Writer) error {
	if running(s) == 0 {
		return errNotUp
	}
	state, err := ReadState(s)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "PROCESS\tPID\tSTATE\tRESTARTS\tUP\tMEMORY")
	total := row(w, "supervisor", Process{Pid: state.Pid, Since: state.Since, Ready: true})
	for _, name := range []string{"control", "node"} {
		if p := state.Children[name]; p != nil {
			total += row(w, name, *p)
		}
	}
	if pid := runtimePid(s); pid > 0 {
		total += row(w, "runtime", Process{Pid: pid, Ready: true})
	}
	fmt.Fprintf(w, "\t\t\t\t\t%d MiB\n", total>>20)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nAPI       https://127.0.0.1:%d (kubeconfig %s)\nServices  http://NAME.NAMESPACE.%s%s\nHTTPS     port %d (authority %s)\nImages    %s\n",
		s.APIPort, s.Kubeconfig(), s.Domain, s.URLSuffix(), s.SecurePort, s.ServicesCA(), s.RegistryHost())
	return counts(ctx, s, out)
}

func row(w io.Writer, name string, p Process) (memory int64) {
	memory = proportional(p.Pid)
	word := "ready"
	switch {
	case memory == 0:
		word = "not running"
	case !p.Ready:
		word = "starting"
	}
	up := "-"
	if !p.Since.IsZero() {
		up = time.Since(p.Since).Round(time.Second).String()
	}
	fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%d MiB\n", name, p.Pid, word, max(p.Restarts, 0), up, memory>>20)
	return memory
}

// proportional is the process's share of memory (PSS) in bytes: pages of the one
// binary that the processes share are counted once in the sum.
func proportional(pid int) int64 {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) == 3 && w[0] == "Pss:" {
			kb, _ := strconv.ParseInt(w[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// counts asks the API how many services and pods there are.
func counts(ctx context.Context, s Settings, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return fmt.Errorf("API: %w", err)
	}
	api, err := kube.NewClient(cfg)
	if err != nil {
		return err
	}
	var services servingv1.ServiceList
	var pods corev1.PodList
	for _, list := range []client.ObjectList{&services, &pods} {
		if err := api.List(ctx, list); err != nil {
			return fmt.Errorf("API: %w", err)
		}
	}
	ready := 0
	for i := range services.Items {
		if services.Items[i].Status.GetCondition(apis.ConditionReady).IsTrue() {
			ready++
		}
	}
	_, err = fmt.Fprintf(out, "Now       %d services (%d ready), %d pods\n", len(services.Items), ready, len(pods.Items))
	return err
}
