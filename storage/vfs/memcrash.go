package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// sectorSize is what a disk writes atomically, in bytes.
const sectorSize = 512

// CrashClone returns what a power loss at this moment might leave: everything
// that was synced, and a random part of what was not.
//
//   - Of a write that was not synced each 512-byte sector survives or not, for
//     itself; its growth of the file and each Truncate likewise. Lost bytes are
//     what they were before, or zeros.
//   - Of the changes of a directory since its SyncDir a prefix survives. A file
//     of which no name survives is gone, whatever was synced of it.
//   - A rename between directories never loses the file: the old name goes
//     only when the new one is there.
//
// The same state and the same random numbers give the same clone. It has no
// open files and no locks, and no limit and hook of its own; m goes on
// unchanged.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &crash{rng: rng, seen: map[*node]bool{}, keep: map[*node]int{}, made: map[*node]*node{}}
	c.collect(m.root)
	c.choose()
	out := NewMem()
	out.root = c.copy(m.root, out)
	return out
}

type crash struct {
	rng  *rand.Rand
	dirs []*node
	seen map[*node]bool
	keep map[*node]int // how many of a directory's pending changes survive
	made map[*node]*node
}

// collect finds all directories, in an order that does not depend on maps.
func (c *crash) collect(n *node) {
	if !n.dir || c.seen[n] {
		return
	}
	c.seen[n] = true
	c.dirs = append(c.dirs, n)
	for _, name := range sortedNames(n.durableNames) {
		c.collect(n.durableNames[name])
	}
	for _, op := range n.pendingNames {
		for _, ch := range op.changes {
			if ch.node != nil {
				c.collect(ch.node)
			}
		}
	}
}

// choose decides how many changes of each directory survive, such that no half
// of a rename survives without the half it needs.
func (c *crash) choose() {
	for _, d := range c.dirs {
		c.keep[d] = c.some(len(d.pendingNames))
	}
	for changed := true; changed; {
		changed = false
		for _, d := range c.dirs {
			for i, op := range d.pendingNames[:c.keep[d]] {
				if op.needs == nil || op.needs.durable {
					continue
				}
				other := op.needs.dir
				if at := slices.Index(other.pendingNames, op.needs); at >= c.keep[other] {
					c.keep[d], changed = i, true
					break
				}
			}
		}
	}
}

// some returns 0 to n, often one of the ends.
func (c *crash) some(n int) int {
	switch c.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return n
	}
	return c.rng.IntN(n + 1)
}

func (c *crash) copy(n *node, out *Mem) *node {
	if done := c.made[n]; done != nil {
		return done
	}
	if !n.dir {
		f := &node{modTime: n.modTime, now: c.content(n)}
		f.durable = f.now.clone()
		out.used += f.now.size
		c.made[n] = f
		return f
	}
	d := newDir()
	d.modTime = n.modTime
	c.made[n] = d
	names := maps.Clone(n.durableNames)
	for _, op := range n.pendingNames[:c.keep[n]] {
		op.apply(names)
	}
	for _, name := range sortedNames(names) {
		child := c.copy(names[name], out)
		child.links++
		d.names[name], d.durableNames[name] = child, child
	}
	return d
}

// content returns what is left of a file.
func (c *crash) content(n *node) content {
	out := n.durable.clone()
	chance := float64(c.some(100)) / 100
	survives := func() bool { return c.rng.Float64() < chance }
	for _, op := range n.pending {
		switch {
		case op.sure:
			op.apply(&out)
		case op.data == nil:
			if survives() {
				out.resize(op.size)
			}
		default:
			end := op.off + int64(len(op.data))
			if end > out.size && survives() {
				out.resize(end)
			}
			for at := op.off; at < end; {
				next := min(at/sectorSize*sectorSize+sectorSize, end)
				if stop := min(next, out.size); survives() && stop > at {
					out.write(op.data[at-op.off:stop-op.off], at)
				}
				at = next
			}
		}
	}
	return out
}

func sortedNames(m map[string]*node) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
