// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// doomedGroup marks links that are about to be removed together. It spells "sonz".
const doomedGroup = 0x736f6e7a

// A remover removes links. The kernel waits some twenty milliseconds for
// every removal, one after the other, but no longer for many at once: links
// that are to go while one removal is under way go with the next.
type remover struct {
	host *netlink.Handle

	mu      sync.Mutex
	waiting []removal
	busy    bool
}

type removal struct {
	link string
	done chan error
}

// remove removes the link; it is no error if there is none.
func (r *remover) remove(link string) error {
	mine := removal{link, make(chan error, 1)}
	r.mu.Lock()
	r.waiting = append(r.waiting, mine)
	first := !r.busy
	r.busy = true
	r.mu.Unlock()
	if first {
		go r.work()
	}
	return <-mine.done
}

// work removes what waits until nothing does.
func (r *remover) work() {
	for {
		r.mu.Lock()
		batch := r.waiting
		r.waiting = nil
		r.busy = len(batch) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		r.removeAll(batch)
	}
}

func (r *remover) removeAll(batch []removal) {
	if len(batch) > 1 {
		r.removeTogether(batch)
	}
	// Those that are still there get an error of their own.
	for _, one := range batch {
		one.done <- r.removeOne(one.link)
	}
}

func (r *remover) removeOne(name string) error {
	link, err := r.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = r.host.LinkDel(link)
	}
	// The link goes by itself with the last process of its namespace.
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing link %s: %w", name, err)
	}
	return nil
}

// removeTogether tries to; what fails is tried again one by one.
func (r *remover) removeTogether(batch []removal) {
	for _, one := range batch {
		if link, err := r.host.LinkByName(one.link); err == nil {
			_ = r.host.LinkSetGroup(link, doomedGroup)
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup)))
	_, _ = req.Execute(unix.NETLINK_ROUTE, 0)
}

// ourLink reports whether the link was made by a builder with this prefix.
func ourLink(a *netlink.LinkAttrs, prefix string) bool {
	return (a.Group == linkGroup || a.Group == doomedGroup) && len(a.Name) > len(prefix) && a.Name[:len(prefix)] == prefix
}
