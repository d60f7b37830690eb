// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestStages(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name    string
		failing string
		want    []string
		err     error
	}{
		{"signal", "", []string{"+etcd", "+api", "+gateway", "-gateway", "-api", "-etcd"}, nil},
		{"api fails", "api", []string{"+etcd", "+api", "+gateway", "-gateway", "-etcd"}, boom},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var log []string
				note := func(s string) { mu.Lock(); log = append(log, s); mu.Unlock() }
				task := func(name string) []Task {
					up := make(chan struct{})
					return []Task{{
						Name: name,
						Run: func(ctx context.Context) error {
							time.Sleep(time.Second)
							note("+" + name)
							close(up)
							if name == tt.failing {
								time.Sleep(5 * time.Second)
								return boom
							}
							<-ctx.Done()
							note("-" + name)
							return nil
						},
						Ready: func(ctx context.Context) error {
							select {
							case <-up:
								return nil
							case <-ctx.Done():
								return ctx.Err()
							}
						},
					}}
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				ctx, stop := context.WithCancel(ctx)
				time.AfterFunc(30*time.Second, stop)
				err := Stages(ctx, nobody{}, task("etcd"), task("api"), task("gateway"))
				if !errors.Is(err, tt.err) {
					t.Errorf("err = %v, want %v", err, tt.err)
				}
				if !slices.Equal(log, tt.want) {
					t.Errorf("log = %v, want %v", log, tt.want)
				}
			})
		})
	}
}

// nobody watches.
type nobody struct{}

func (nobody) Starting(string)             {}
func (nobody) Ready(string, time.Duration) {}
