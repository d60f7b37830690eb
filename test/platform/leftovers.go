// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leftovers lists what of this platform is still on the machine: mounts, links,
// routes, rules, cgroups, processes and sockets.
func (p *Platform) Leftovers() (left []string) {
	p.remember()
	for _, list := range []func() []string{p.mounts, p.links, p.routes, p.tables, p.cgroups, p.processes, p.sockets} {
		left = append(left, list()...)
	}
	return left
}

func (p *Platform) mounts() (left []string) {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, p.DataDir+"/") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	return left
}

// links are the bridge and the host's ends of pods' links, whose names begin with
// a letter and the hash of the bridge's.
func (p *Platform) links() (left []string) {
	all, err := netlink.LinkList()
	if err != nil {
		return []string{"links cannot be listed: " + err.Error()}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.flag("--bridge")))
	prefix := fmt.Sprintf("s%05x", h.Sum32()&0xfffff)
	for _, l := range all {
		if name := l.Attrs().Name; name == p.flag("--bridge") || strings.HasPrefix(name, prefix) {
			left = append(left, "link "+name)
		}
	}
	return left
}

// routes are those to addresses of pods and Services.
func (p *Platform) routes() (left []string) {
	all, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return []string{"routes cannot be listed: " + err.Error()}
	}
	for _, r := range all {
		for _, flag := range []string{"--pod-cidr", "--service-cidr"} {
			prefix := netip.MustParsePrefix(p.flag(flag))
			if to, ok := destination(r.Dst); ok && to.Bits() >= prefix.Bits() && prefix.Contains(to.Addr()) {
				left = append(left, "route "+r.String())
			}
		}
	}
	return left
}

func destination(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits), ok
}

// tables are nftables', with all rules, sets and maps in them.
func (p *Platform) tables() (left []string) {
	conn, err := nftables.New()
	if err == nil {
		var all []*nftables.Table
		if all, err = conn.ListTables(); err == nil {
			for _, t := range all {
				if strings.HasPrefix(t.Name, p.flag("--bridge")) {
					left = append(left, "nftables table "+t.Name)
				}
			}
			return left
		}
	}
	return []string{"nftables cannot be listed: " + err.Error()}
}

// cgroups are those of every pod that was ever seen, in all hierarchies.
func (p *Platform) cgroups() (left []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if uid, ok := strings.CutPrefix(d.Name(), "pod"); ok && p.seen[uid] {
			left = append(left, "cgroup "+path)
			return fs.SkipDir
		}
		return nil
	})
	return left
}

func (p *Platform) processes() (left []string) {
	for _, pid := range append(p.Own(), p.Containers()...) {
		if !zombie(pid) {
			left = append(left, fmt.Sprintf("process %d %s", pid, strings.Join(cmdline(pid), " ")))
		}
	}
	return left
}

// sockets are what still listens: on the platform's ports, and on paths in its directory.
func (p *Platform) sockets() (left []string) {
	unixes, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(unixes)) {
		if strings.Contains(line, p.DataDir+"/") {
			left = append(left, "socket "+strings.TrimSpace(line))
		}
	}
	for _, flag := range []string{"--port", "--api-port", "--registry-port", "--kubelet-port", "--internal-port", "--https-port"} {
		l, err := net.Listen("tcp", "0.0.0.0:"+p.flag(flag))
		if err != nil {
			left = append(left, fmt.Sprintf("socket %s %s: %v", flag, p.flag(flag), err))
			continue
		}
		l.Close()
	}
	return left
}

// remember notes the pods that the platform has, so that their cgroups are still
// known when all else of them is gone.
func (p *Platform) remember() {
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	dirs, _ := filepath.Glob(filepath.Join(p.DataDir, "pods", "*"))
	logs, _ := filepath.Glob(filepath.Join(p.DataDir, "logs", "pods", "*"))
	for _, path := range append(dirs, logs...) {
		name := filepath.Base(path)
		p.seen[name[strings.LastIndex(name, "_")+1:]] = true
	}
}

func (p *Platform) flag(name string) string {
	for i, f := range p.flags {
		if f == name {
			return p.flags[i+1]
		}
	}
	return ""
}
