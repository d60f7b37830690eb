// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sonagiadmission "github.com/sonagi/sonagi/internal/admission"
	"github.com/sonagi/sonagi/internal/cluster/apiserver"
	"github.com/sonagi/sonagi/internal/cluster/controllers"
	"github.com/sonagi/sonagi/internal/cluster/etcd"
	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/cluster/scheduler"
	"github.com/sonagi/sonagi/internal/install"
	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/autoscaler"
	servingcontrol "github.com/sonagi/sonagi/internal/serving/control"
)

// RunControl is the control process: the API and everything that works on objects.
func RunControl(ctx context.Context, s Settings) error { return play(ctx, "control", s, control) }

func control(_ context.Context, s Settings, log *slog.Logger) ([][]run.Task, error) {
	files, err := pki.Ensure(s.Path("pki"), s.certificates())
	if err != nil {
		return nil, err
	}
	store := etcd.New(etcd.Options{Dir: s.Path("etcd"), Socket: s.Path("run", "etcd.sock"), Log: log})
	settings := &systemConfigMaps{}
	api := apiserver.New(s.apiserver(files, store, settings, log))
	cfg := api.RESTConfig()
	shared := api.Informers() // one cache for the API server, all upstream controllers and the scheduler
	issuer, err := pki.NewIssuer(files.ServicesCA)
	if err != nil {
		return nil, err
	}
	upstream := controllers.New(controllers.Options{
		REST: cfg, Informers: shared, PKI: files, LocalPathDir: s.Path("volumes"), NodeName: s.NodeName, Log: log,
	})
	binder := scheduler.New(scheduler.Options{REST: cfg, Informers: shared})
	return [][]run.Task{
		{store.Task(), pki.Keep(s.Path("pki"), s.certificates())}, // ends last: the API server still writes when it stops
		{api.Task()},
		{once("platform objects", func(ctx context.Context) error {
			_, err := install.Apply(ctx, cfg, s.installation(files))
			return err
		})},
		{upstream.Task(), binder.Task(), s.serving(cfg, settings, issuer, log)},
	}, nil
}

func (s Settings) apiserver(files *pki.Files, store *etcd.Server, settings *systemConfigMaps, log *slog.Logger) apiserver.Options {
	return apiserver.Options{
		PKI: files, Store: store.Store, EtcdEndpoint: store.Endpoint(),
		Listen:      []string{fmt.Sprintf("127.0.0.1:%d", s.APIPort), fmt.Sprintf("%s:%d", s.BridgeIP(), s.APIPort)},
		Advertise:   s.BridgeIP().String(),
		ServiceCIDR: s.ServiceCIDR.String(),
		Issuer:      "https://kubernetes.default.svc." + s.ClusterDomain,
		Admission: map[string]admission.Interface{
			"KnativeServing": sonagiadmission.Plugin(sonagiadmission.Options{ConfigMap: settings.get, DryRunPod: settings.check}),
		},
		Log: log,
	}
}

// serving is the manager with Serving's reconcilers and the autoscaler. It is
// built when its stage starts, because a manager asks the API for its kinds.
func (s Settings) serving(cfg *rest.Config, settings *systemConfigMaps, issuer *pki.Issuer, log *slog.Logger) run.Task {
	ready := make(chan struct{})
	return run.Task{
		Name: "Knative Serving",
		Run: func(ctx context.Context) error {
			manager, err := kube.NewManager(cfg, log)
			if err != nil {
				return err
			}
			err = servingcontrol.Setup(manager, servingcontrol.Options{
				ClusterDomain: s.ClusterDomain, ExternalPort: s.GatewayPort, SecurePort: s.SecurePort, Issuer: issuer, Programmed: s.programmed, Aliases: s.registryAliases(), Log: log,
			})
			if err != nil {
				return err
			}
			scaler, err := autoscaler.New(autoscaler.Options{Client: manager.GetClient(), Informers: manager.GetCache(), Log: log})
			if err != nil {
				return err
			}
			settings.from(manager.GetCache(), manager.GetClient())
			return run.Stages(ctx, silent{},
				[]run.Task{kube.Task("caches", manager)},
				[]run.Task{scaler.Task(), listenUnix("load samples", s.controlSocket(), controlHandler(scaler))},
				[]run.Task{{Run: func(ctx context.Context) error {
					close(ready)
					<-ctx.Done()
					return nil
				}}})
		},
		Ready: func(ctx context.Context) error { return wait(ctx, ready) },
	}
}

// controlHandler is what node asks of control, and tells it.
func controlHandler(scaler *autoscaler.Autoscaler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", scaler)
	mux.Handle("GET /metrics", scaler.Metrics())
	return mux
}

func (s Settings) installation(files *pki.Files) install.Options {
	return install.Options{
		Domain: s.Domain, HostIP: s.BridgeIP(), ClusterDNS: s.DNSIP(),
		GatewayPort: s.GatewayPort, SecurePort: s.SecurePort, InternalPort: s.InternalPort, DNSPort: dnsPort, RegistryPort: s.RegistryPort,
		MetricsPort: s.KubeletPort, MetricsCA: files.CABundle, DataPlaneUser: pki.DataPlaneUser, ServingMetricsPort: servingMetricsPort,
	}
}

// dnsPort is where cluster DNS listens on the bridge.
const dnsPort = 53

// once is a task that is ready when do is done, and then has nothing more to do.
func once(name string, do func(context.Context) error) run.Task {
	done := make(chan struct{})
	return run.Task{
		Name: name,
		Run: func(ctx context.Context) error {
			if err := do(ctx); err != nil {
				return err
			}
			close(done)
			<-ctx.Done()
			return nil
		},
		Ready: func(ctx context.Context) error { return wait(ctx, done) },
	}
}

// wait returns when done is closed, or ctx ends.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// silent watches the stages inside a task, which is reported as a whole.
type silent struct{}

func (silent) Starting(string)             {}
func (silent) Ready(string, time.Duration) {}

// systemConfigMaps are Serving's settings for admission, which runs before and
// while the cache that holds them is filled: until then the defaults hold.
type systemConfigMaps struct {
	reader atomic.Pointer[client.Reader]
	writer atomic.Pointer[client.Client]
}

func (c *systemConfigMaps) from(r client.Reader, w client.Client) {
	c.reader.Store(&r)
	c.writer.Store(&w)
}

// check has the API server check a pod for admission, without keeping it.
func (c *systemConfigMaps) check(ctx context.Context, pod *corev1.Pod) error {
	writer := c.writer.Load()
	if writer == nil {
		return nil
	}
	return (*writer).Create(ctx, pod, client.DryRunAll)
}

func (c *systemConfigMaps) get(name string) *corev1.ConfigMap {
	reader := c.reader.Load()
	if reader == nil {
		return nil
	}
	// A cache that is not filled yet would be waited for: a request must not wait.
	ctx, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	m := &corev1.ConfigMap{}
	if err := (*reader).Get(ctx, client.ObjectKey{Namespace: kube.SystemNamespace, Name: name}, m); err != nil {
		return nil
	}
	return m
}
