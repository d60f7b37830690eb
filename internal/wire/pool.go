// SPDX-License-Identifier: Apache-2.0

package wire

import "sync"

const (
	// Small holds a message head, and most whole messages.
	Small = 8 << 10
	// Large is for bodies, and for the heads that need it.
	Large = 64 << 10
)

// A Pool lends buffers of one size.
type Pool struct {
	pool sync.Pool
	size int
}

// NewPool returns a pool of buffers of a size.
func NewPool(size int) *Pool { return &Pool{size: size} }

// Get lends a buffer.
func (p *Pool) Get() *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, p.size)
	return &b
}

// Put takes a buffer back. Buffers of another size are left to the collector.
func (p *Pool) Put(b *[]byte) {
	if cap(*b) == p.size {
		*b = (*b)[:p.size]
		p.pool.Put(b)
	}
}
