// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Purge removes everything that Managers with these options ever made: links,
// routes, rules, namespaces (unless a process is still in one) and the folder.
// What others may have come to rely on stays: IP forwarding. No Manager may
// be open.
func Purge(o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	if err := errors.Join(newRulebook(o).takeBack(), purgeTables(o), purgeLinks(o), purgeDir(o.Dir)); err != nil {
		return fmt.Errorf("removing the pod network: %w", err)
	}
	return nil
}

func purgeTables(o Options) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	names := tableNames(o.Table)
	return deleteTables(conn, names[:]...)
}

func purgeLinks(o Options) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	remove := &remover{host: h}
	var removals errgroup.Group
	for _, l := range links {
		if a := l.Attrs(); ourLink(a, o.LinkPrefix) || a.Name == o.Bridge && l.Type() == "bridge" {
			removals.Go(func() error { return remove.remove(a.Name) })
		}
	}
	failed := []error{removals.Wait()}
	for _, r := range ourRoutes(o, netip.Addr{}, 0) {
		if r.Type != unix.RTN_UNREACHABLE {
			continue // went with the bridge
		}
		if err := h.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("removing route %s: %w", r.Dst, err))
		}
	}
	return errors.Join(failed...)
}

// purgeDir unmounts what is mounted in the folder and removes it.
func purgeDir(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountsBelow(real)
	if err != nil {
		return err
	}
	for _, at := range mounts {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", at, err)
		}
	}
	return errors.Join(os.RemoveAll(real), os.Remove(lockPath(filepath.Dir(real), filepath.Base(real))))
}
