// SPDX-License-Identifier: Apache-2.0

// Package routing matches a request to a revision and its endpoints.
//
// A Table is immutable: Match only reads it, and a change makes a new table
// from the old one (Table.Edit) that Live then shows to everybody at once. A
// request therefore sees one state of the world from its first byte to its
// last. The one thing that outlives a table is the cursor of a split, so that
// shares stay exact while tables are replaced under load.
package routing

import (
	"crypto/tls"
	"time"
)

// Name names an object in a namespace.
type Name struct{ Namespace, Name string }

// String returns namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Protocol is what an app speaks on its port.
type Protocol uint8

// The protocols of apps.
const (
	HTTP1 Protocol = iota
	H2C
)

// String returns the port name that chooses the protocol.
func (p Protocol) String() string {
	if p == H2C {
		return "h2c"
	}
	return "http1"
}

// Revision is what the data plane has to know of one revision.
type Revision struct {
	Name          Name
	Service       string
	Configuration string

	Port     uint16
	Protocol Protocol

	// Concurrency bounds the requests in one pod; zero is no bound.
	Concurrency int
	// Queue bounds the requests that wait for a place while pods are ready.
	// Zero stands for the bound that also holds while none is.
	Queue int

	// Timeout is how long a request may take altogether, ResponseStart until
	// its answer starts, Idle between two writes of the app. Zero: no limit.
	Timeout, ResponseStart, Idle time.Duration

	// Counts go over from a revision to the one that takes its place in the
	// next table.
	Counts *Counts
}

// Share is a part of a route's requests.
type Share struct {
	Revision Name
	Percent  int
}

// Visibility says on which listeners a host is answered.
type Visibility uint8

// A host that is External is answered everywhere.
const (
	External Visibility = iota
	ClusterLocal
)

// Host is one host name of a route.
type Host struct {
	Host       string
	Visibility Visibility
	// Tag is the tag this host stands for; empty for the route itself.
	Tag   string
	Split *Split
	// Alias is another host that is asked for in the place of this one, of
	// whatever visibility. It stands in the place of a split.
	Alias string
	// Certificate names what proves the host to clients; without one there is
	// no TLS.
	Certificate Name
	// Redirect sends requests in plain HTTP from outside on to HTTPS.
	Redirect bool
}

// Certificate proves one or more hosts.
type Certificate struct {
	Name Name
	TLS  *tls.Certificate
}

// Route is a compiled route: its hosts, and the splits its tags stand for.
type Route struct {
	Name Name
	// Generation of the route's spec that this was compiled from, and Version,
	// the object's resource version, which also counts changes of its status.
	Generation int64
	Version    uint64
	// Created orders routes that claim the same host: the oldest keeps it.
	Created time.Time

	Hosts []Host
	Tags  map[string]*Split
}
