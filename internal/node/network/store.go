// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What the disk says, per sandbox: a folder whose name holds the address, the
// three pinned namespaces, "ready" once it is whole, and "pod" while a pod
// has it.
const (
	readyFile  = "ready"
	podFile    = "pod"
	cursorFile = ".cursor"
)

// pins are the files that hold the namespaces.
func pins() []string { return []string{"net", "ipc", "uts"} }

// record is what the "pod" file says.
type record struct {
	PodUID    string     `json:"podUID"`
	Hostname  string     `json:"hostname"`
	HostPorts []HostPort `json:"hostPorts,omitempty"`
}

// newID names a sandbox after its address, with a part that makes two
// sandboxes of one address different.
func newID(ip netip.Addr) string {
	var b [4]byte
	rand.Read(b[:])
	return strings.ReplaceAll(ip.String(), ".", "-") + "-" + hex.EncodeToString(b[:])
}

// addrOfID reads the address from the name of a sandbox.
func addrOfID(id string) (netip.Addr, bool) {
	i := strings.LastIndexByte(id, '-')
	if i < 0 {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(id[:i], "-", "."))
	return ip, err == nil && ip.Is4()
}

func sandboxAt(dir, id string, ip netip.Addr) Sandbox {
	at := filepath.Join(dir, id)
	return Sandbox{
		ID: id, IP: ip,
		NetNS: filepath.Join(at, "net"), IPCNS: filepath.Join(at, "ipc"), UTSNS: filepath.Join(at, "uts"),
	}
}

func writeRecord(dir string, s Sandbox) error {
	text, err := json.Marshal(record{s.PodUID, s.Hostname, s.HostPorts})
	if err != nil {
		return err
	}
	at := filepath.Join(dir, s.ID, podFile)
	if err := os.WriteFile(at+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(at+".new", at)
}

// readRecord says who has the sandbox; nobody if there is no record.
func readRecord(dir, id string) (record, error) {
	var r record
	text, err := os.ReadFile(filepath.Join(dir, id, podFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("reading the owner of sandbox %s: %w", id, err)
	}
	return r, nil
}

// whole reports whether a sandbox was finished and its namespaces are alive.
func whole(dir, id string) bool {
	at := filepath.Join(dir, id)
	if _, err := os.Stat(filepath.Join(at, readyFile)); err != nil {
		return false
	}
	for _, pin := range pins() {
		var st unix.Statfs_t
		if unix.Statfs(filepath.Join(at, pin), &st) != nil || st.Type != unix.NSFS_MAGIC {
			return false
		}
	}
	return true
}

// lockPath is beside the folder and not in it: a folder that becomes a mount
// hides what was in it.
func lockPath(parent, name string) string { return filepath.Join(parent, "."+name+".lock") }

// lockDir keeps a second manager away from the folder.
func lockDir(parent, name string) (*os.File, error) {
	f, err := os.OpenFile(lockPath(parent, name), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is in use by another process", ErrConflict, filepath.Join(parent, name))
		}
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return f, nil
}

// mountDir makes dir a file system in memory: what is in it dies with the
// machine, as the namespaces do, writing it waits for no disk, and a full
// disk does not keep pods from starting. It tells no other mount namespace
// about what is mounted below it: where / is shared, each pin would otherwise
// appear in, and be kept alive by, every service's namespace.
func mountDir(dir string) error {
	mounted, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if slices.Contains(mounted, dir) {
		return nil
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("sonagi", dir, "tmpfs", flags, "mode=0700,size=64m"); err != nil {
		return fmt.Errorf("mounting %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making %s private: %w", dir, err)
	}
	return nil
}

// mountsBelow lists mount points at or below dir, the deepest first.
func mountsBelow(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var at []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 5 {
			continue
		}
		p := unescapeMount(words[4])
		if p == dir || strings.HasPrefix(p, dir+"/") {
			at = append([]string{p}, at...)
		}
	}
	return at, nil
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
