// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
)

// A Reason is why a container waits for its image, in the word that a pod's
// status has for it.
type Reason string

const (
	ReasonPull                Reason = "ErrImagePull"
	ReasonBackOff             Reason = "ImagePullBackOff"
	ReasonInvalidName         Reason = "InvalidImageName"
	ReasonNeverPull           Reason = "ErrImageNeverPull"
	ReasonInspect             Reason = "ImageInspectError"
	ReasonRegistryUnavailable Reason = "RegistryUnavailable"
)

// What can go wrong, for errors.Is.
var (
	ErrNotFound     = errors.New("not found")
	ErrUnauthorized = errors.New("not authorized")
	ErrTimeout      = errors.New("registry does not answer")
	ErrUnavailable  = errors.New("registry unavailable")
	ErrCorrupt      = errors.New("content is not what its digest says")
	ErrUnsafe       = errors.New("layer is not safe to unpack")
	ErrTooLarge     = errors.New("too large")
	ErrNoSpace      = errors.New("not enough disk space")
	ErrPlatform     = errors.New("no match for platform in manifest")
	ErrInsecure     = errors.New("plain HTTP is not allowed")
	ErrInUse        = errors.New("image is in use")
	ErrNotPresent   = errors.New("image is not present on this machine")
	ErrUser         = errors.New("no such user in the image")
	ErrClosed       = errors.New("image store is closed")
)

// An Error is why an image cannot be had. Its text is what a pod's status
// shows; it has the registry's own words in it.
type Error struct {
	Ref    string // as it was asked for
	Reason Reason
	Err    error
}

func (e *Error) Error() string {
	switch e.Reason {
	case ReasonInvalidName:
		return fmt.Sprintf("Failed to apply default image tag %q: %v", e.Ref, e.Err)
	case ReasonNeverPull:
		return fmt.Sprintf("Container image %q is not present with pull policy of Never", e.Ref)
	case ReasonBackOff:
		return fmt.Sprintf("Back-off pulling image %q: %v", e.Ref, e.Err)
	}
	return e.Err.Error() // has the full name
}

func (e *Error) Unwrap() error { return e.Err }

// ReasonOf is the reason in err, or ReasonPull when it has none.
func ReasonOf(err error) Reason {
	if e := new(Error); errors.As(err, &e) {
		return e.Reason
	}
	return ReasonPull
}

// NeverPull is the error for an image that is absent and may not be pulled.
func NeverPull(ref string) error {
	return &Error{Ref: ref, Reason: ReasonNeverPull, Err: ErrNotPresent}
}

// BackOff is the error for an image whose pull failed with last and is not yet
// tried again.
func BackOff(ref string, last error) error {
	return &Error{Ref: ref, Reason: ReasonBackOff, Err: fmt.Errorf("%s: %w", ReasonOf(last), last)}
}
