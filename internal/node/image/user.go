// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A User is whom a container runs as.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
}

// maxAccounts bounds what is read of a container's passwd and group files.
const maxAccounts = 4 << 20

// ResolveUser finds the user that an image or a pod names, as "user",
// "user:group" or either by number, in the root file system's own files. No
// user is root. A number needs no entry; its group is then 0.
func ResolveUser(rootfs, user string) (User, error) {
	tree, err := confine(rootfs)
	if err != nil {
		return User{}, fmt.Errorf("resolving user: %w", err)
	}
	defer tree.Close()
	passwd, err := tree.accounts("etc/passwd")
	if err != nil {
		return User{}, fmt.Errorf("resolving user: %w", err)
	}
	groups, err := tree.accounts("etc/group")
	if err != nil {
		return User{}, fmt.Errorf("resolving user: %w", err)
	}
	u, err := resolveUser(user, passwd, groups)
	if err != nil {
		return User{}, fmt.Errorf("resolving user %q: %w", clip(user, 64), err)
	}
	return u, nil
}

// accounts reads a file of lines with fields between colons. That there is
// none is usual.
func (c *confined) accounts(name string) ([][]string, error) {
	b, err := c.readSmall(name, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all [][]string
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line != "" && line[0] != '#' {
			all = append(all, strings.Split(line, ":"))
		}
	}
	return all, nil
}

func resolveUser(user string, passwd, groups [][]string) (User, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	u, login, err := findUser(name, passwd)
	if err != nil {
		return User{}, err
	}
	if hasGroup && group != "" {
		gid, err := findGroup(group, groups)
		if err != nil {
			return User{}, err
		}
		u.GID = gid
		return u, nil // a group that is asked for stands alone
	}
	u.Groups = groupsOf(login, u.GID, groups)
	return u, nil
}

// findUser looks a user up by name, then by number, as login programs do.
func findUser(name string, passwd [][]string) (u User, login string, err error) {
	number, notNumber := parseID(name)
	for _, f := range passwd {
		if len(f) < 4 {
			continue
		}
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 != nil || err2 != nil || f[0] != name && (notNumber != nil || uid != number) {
			continue
		}
		u = User{UID: uid, GID: gid, Home: "/"}
		if len(f) > 5 && f[5] != "" {
			u.Home = f[5]
		}
		return u, f[0], nil
	}
	if notNumber != nil {
		return User{}, "", fmt.Errorf("%w: no matching entries in passwd file", ErrUser)
	}
	return User{UID: number, Home: "/"}, "", nil
}

func findGroup(name string, groups [][]string) (uint32, error) {
	for _, f := range groups {
		if len(f) >= 3 && f[0] == name {
			return parseID(f[2])
		}
	}
	gid, err := parseID(name)
	if err != nil {
		return 0, fmt.Errorf("%w: no matching entries in group file for %q", ErrUser, clip(name, 64))
	}
	return gid, nil
}

// groupsOf are the groups that list a user, without its own.
func groupsOf(login string, own uint32, groups [][]string) []uint32 {
	var in []uint32
	for _, f := range groups {
		if login == "" || len(f) < 4 {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if gid, err := parseID(f[2]); member == login && err == nil && gid != own {
				in = append(in, gid)
				break
			}
		}
	}
	return in
}

// parseID reads a user or group number; the kernel's is one bit smaller than
// the type, and the largest stands for "none".
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}
