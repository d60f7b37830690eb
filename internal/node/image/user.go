// SPDX-License-Identifier: Apache-2.0

package image

// A User is whom a container runs as.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
}

// ResolveUser finds the user that an image or a pod names, as "user",
// "user:group" or either by number, in the root file system's own files.
func ResolveUser(rootfs, user string) (User, error) { return User{}, errUnbuilt }
