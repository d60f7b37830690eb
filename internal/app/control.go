// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	sonagiadmission "github.com/sonagi/sonagi/internal/admission"
	"github.com/sonagi/sonagi/internal/cluster/apiserver"
	"github.com/sonagi/sonagi/internal/cluster/controllers"
	"github.com/sonagi/sonagi/internal/cluster/etcd"
	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/cluster/scheduler"
	"github.com/sonagi/sonagi/internal/install"
	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/run"
)

// RunControl is the control process: the API and everything that works on objects.
func RunControl(ctx context.Context, s Settings) error { return play(ctx, "control", s, control) }

func control(_ context.Context, s Settings, log *slog.Logger) ([][]run.Task, error) {
	files, err := pki.Ensure(s.Path("pki"), s.certificates())
	if err != nil {
		return nil, err
	}
	store := etcd.New(etcd.Options{Dir: s.Path("etcd"), Socket: s.Path("run", "etcd.sock"), Log: log})
	api := apiserver.New(apiserver.Options{
		PKI: files, Store: store.Store, EtcdEndpoint: store.Endpoint(),
		Listen:      []string{fmt.Sprintf("127.0.0.1:%d", s.APIPort), fmt.Sprintf("%s:%d", s.BridgeIP(), s.APIPort)},
		Advertise:   s.BridgeIP().String(),
		ServiceCIDR: s.ServiceCIDR.String(),
		Issuer:      "https://kubernetes.default.svc." + s.ClusterDomain,
		Admission: map[string]admission.Interface{
			"KnativeServing": sonagiadmission.Plugin(sonagiadmission.Options{ConfigMap: func(string) *corev1.ConfigMap { return nil }}),
		},
		Log: log,
	})
	cfg := api.RESTConfig()
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	// One cache for all upstream controllers and the scheduler.
	shared := informers.NewSharedInformerFactoryWithOptions(core, 0, informers.WithTransform(kube.Lean))
	upstream := controllers.New(controllers.Options{
		REST: cfg, Informers: shared, PKI: files, LocalPathDir: s.Path("volumes"), NodeName: s.NodeName, Log: log,
	})
	binder := scheduler.New(scheduler.Options{REST: cfg, Informers: shared})
	return [][]run.Task{
		{store.Task(), api.Task()}, // the API opens its storage as soon as the store is up
		{once("platform objects", func(ctx context.Context) error {
			_, err := install.Apply(ctx, cfg, s.installation(files))
			return err
		})},
		{upstream.Task(), binder.Task()},
	}, nil
}

func (s Settings) installation(files *pki.Files) install.Options {
	return install.Options{
		Domain: s.Domain, HostIP: s.BridgeIP(), ClusterDNS: s.DNSIP(),
		GatewayPort: s.GatewayPort, InternalPort: s.InternalPort, DNSPort: dnsPort, RegistryPort: s.RegistryPort,
		MetricsPort: s.KubeletPort, MetricsCA: files.CABundle, DataPlaneUser: pki.DataPlaneUser,
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
		Ready: func(ctx context.Context) error {
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	}
}
