// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// memberURL names the one member in its own membership list, which insists on
// host and port. Nothing listens there: a cluster of one has nobody to talk to.
const memberURL = "http://127.0.0.1:2380"

// start opens the files and starts the member. The library's way out of
// damaged files is log.Fatal or panic, in this goroutine or in one of its
// own; both arrive as s.broken (see zap.go), so it gets a goroutine that may die.
func (s *Server) start() (*embed.Etcd, error) {
	type result struct {
		member *embed.Etcd
		err    error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- result{err: damaged(p)}
			}
		}()
		member, err := embed.StartEtcd(s.config())
		done <- result{member, err}
	}()
	select {
	case r := <-done:
		return r.member, r.err
	case err := <-s.broken:
		return nil, damaged(err)
	}
}

func damaged(why any) error {
	return fmt.Errorf("its files are damaged or cannot be read: put a copy of the directory back, or remove it to begin empty: %v", why)
}

func (s *Server) config() *embed.Config {
	c := embed.NewConfig()
	c.Name = "sonagi"
	c.Dir = s.options.Dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.zap())

	member, _ := url.Parse(memberURL)
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{*member}
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: s.options.Socket}}
	c.AdvertiseClientUrls = []url.URL{*member}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.EnableGRPCGateway = false

	// A member of one elects itself when its timeout ends, one to five ticks
	// after the start. The library wants the timeout to be five ticks or more.
	c.TickMs = 20
	c.ElectionMs = 100

	// Entries are kept in memory until a snapshot, and then as many again for
	// slow followers. There are none; a restart replays the log since the
	// last commit of the bolt file anyway.
	c.SnapshotCount = 1000
	c.SnapshotCatchUpEntries = 16
	c.MaxSnapFiles = 2
	c.MaxWalFiles = 2

	// The bolt file is brought up to date in the background; its own two
	// syncs per commit compete with the log's for the disk, and a cold start
	// is twenty writes in a tenth of a second.
	c.BackendBatchInterval = 500 * time.Millisecond

	c.QuotaBackendBytes = 8 << 30
	c.BootstrapDefragThresholdMegabytes = 64
	c.WarningApplyDuration = time.Second
	return c
}
