// SPDX-License-Identifier: Apache-2.0

// Package traffic decides which revision gets which share of a route.
//
// A target names a revision, or a configuration whose newest ready revision it follows. All
// targets must lead to ready revisions, or none is served: half a route is worse than the one
// that was there before. The first target that fails for good is the reason that is told;
// one that is only not ready yet is told if nothing fails.
package traffic

import "fmt"

// A State is how far a configuration or revision has come.
type State int

// The states.
const (
	Waiting State = iota
	Ready
	Failed
)

// A Target is one line of a route's spec.
type Target struct {
	Tag           string
	Revision      string // this revision,
	Configuration string // or the newest ready one of this configuration
	Latest        bool   // whether the target follows the newest ready revision
	Percent       int64
}

// A Share is a target that is resolved to its revision.
type Share struct {
	Tag           string
	Revision      string
	Configuration string // that the revision belongs to
	Latest        bool
	Percent       int64
}

// A Configuration is what is known of one.
type Configuration struct {
	State       State
	LatestReady string
}

// A Revision is what is known of one.
type Revision struct {
	State         State
	Service       string // that it belongs to, if any
	Configuration string // that it belongs to, if any
}

// Known looks configurations and revisions up.
type Known struct {
	Configuration func(name string) (Configuration, bool)
	Revision      func(name string) (Revision, bool)
}

// A Fault is why a route's targets cannot be served.
type Fault struct {
	Reason, Message string
	Failed          bool // for good; else an event will tell when to look again
}

// The reasons.
const (
	RevisionMissing      = "RevisionMissing"
	ConfigurationMissing = "ConfigurationMissing"
	RevisionNotOwned     = "RevisionNotOwned"
)

// Assign resolves the targets of a route that belongs to service, or to none.
func Assign(service string, targets []Target, known Known) ([]Share, *Fault) {
	var shares []Share
	var fault *Fault
	for _, t := range targets {
		share, f := resolve(service, t, known)
		if f == nil {
			shares = merge(shares, share)
			continue
		}
		if fault == nil || f.Failed {
			fault = f
		}
	}
	if fault != nil {
		return nil, fault
	}
	return shares, nil
}

func resolve(service string, t Target, known Known) (Share, *Fault) {
	share := Share(t)
	if t.Revision == "" {
		c, ok := known.Configuration(t.Configuration)
		switch {
		case !ok:
			return share, failed(ConfigurationMissing, "Configuration %q referenced in traffic not found.", t.Configuration)
		case c.LatestReady == "" && c.State == Failed:
			return share, failed(RevisionMissing, "Configuration %q does not have any ready Revision.", t.Configuration)
		case c.LatestReady == "":
			return share, waiting(RevisionMissing, "Configuration %q is waiting for a Revision to become ready.", t.Configuration)
		}
		share.Revision = c.LatestReady
	}
	r, ok := known.Revision(share.Revision)
	switch {
	case !ok:
		return share, failed(RevisionMissing, "Revision %q referenced in traffic not found.", share.Revision)
	case t.Revision != "" && service != "" && r.Service == "":
		return share, failed(RevisionNotOwned, "Revision %q does not belong to Service %q.", share.Revision, service)
	case t.Revision != "" && service != "" && r.Service != service:
		return share, failed(RevisionNotOwned, "Revision %q belongs to Service %q, not Service %q.", share.Revision, r.Service, service)
	case r.State == Failed:
		return share, failed(RevisionMissing, "Revision %q failed to become ready.", share.Revision)
	case r.State != Ready:
		return share, waiting(RevisionMissing, "Revision %q is not yet ready.", share.Revision)
	}
	if r.Configuration != "" {
		share.Configuration = r.Configuration
	}
	return share, nil
}

// merge adds a share to the one that says the same but for its percentage, if there is one.
func merge(shares []Share, s Share) []Share {
	for i := range shares {
		same := shares[i]
		same.Percent, same.Configuration = s.Percent, s.Configuration
		if same == s {
			shares[i].Percent += s.Percent
			return shares
		}
	}
	return append(shares, s)
}

func failed(reason, format string, args ...any) *Fault {
	return &Fault{Reason: reason, Message: fmt.Sprintf(format, args...), Failed: true}
}

func waiting(reason, format string, args ...any) *Fault {
	return &Fault{Reason: reason, Message: fmt.Sprintf(format, args...)}
}
