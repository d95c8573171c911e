package vfs

import "time"

// page is the unit of sharing between contents. A page is never changed once
// it is in a content, so that snapshots are copies of pointers.
type page [BlockSize]byte

// content is the bytes of a file. Bytes of the last page beyond size are zero.
type content struct {
	pages []*page // nil: zeros
	size  int64
}

func (c *content) clone() content {
	return content{pages: append([]*page(nil), c.pages...), size: c.size}
}

// resize sets the size; new bytes are zero.
func (c *content) resize(size int64) {
	n := int((size + BlockSize - 1) / BlockSize)
	for len(c.pages) < n {
		c.pages = append(c.pages, nil)
	}
	clear(c.pages[n:])
	c.pages = c.pages[:n]
	if in := size % BlockSize; size < c.size && in != 0 && c.pages[n-1] != nil {
		p := *c.pages[n-1]
		clear(p[in:])
		c.pages[n-1] = &p
	}
	c.size = size
}

// write puts b at off, growing the file as needed.
func (c *content) write(b []byte, off int64) {
	if end := off + int64(len(b)); end > c.size {
		c.resize(end)
	}
	for len(b) > 0 {
		i, in := off/BlockSize, off%BlockSize
		p := new(page)
		if old := c.pages[i]; old != nil && (in != 0 || len(b) < BlockSize) {
			*p = *old
		}
		n := copy(p[in:], b)
		c.pages[i] = p
		b, off = b[n:], off+int64(n)
	}
}

// read fills b from off and returns how many bytes there were.
func (c *content) read(b []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	b = b[:min(int64(len(b)), c.size-off)]
	for done := 0; done < len(b); {
		i, in := (off+int64(done))/BlockSize, (off+int64(done))%BlockSize
		dst := b[done:min(len(b), done+int(BlockSize-in))]
		if p := c.pages[i]; p != nil {
			copy(dst, p[in:])
		} else {
			clear(dst)
		}
		done += len(dst)
	}
	return len(b)
}

// fileOp is a change of a file that no Sync has covered yet: a write, or with
// data nil a change of size.
type fileOp struct {
	off  int64
	data []byte
	size int64
	sure bool // survives: it was a write with Dsync, which has returned
}

func (o *fileOp) apply(c *content) {
	if o.data == nil {
		c.resize(o.size)
		return
	}
	c.write(o.data, o.off)
}

// dirOp is a change of a directory that no SyncDir has covered yet.
type dirOp struct {
	dir     *node
	changes []change
	// needs is the other half of a rename between directories: the old name
	// goes only if the new one is there.
	needs   *dirOp
	durable bool
}

// change sets a name of a directory, or removes it (node nil).
type change struct {
	name string
	node *node
}

func (o *dirOp) apply(names map[string]*node) {
	for _, c := range o.changes {
		if c.node == nil {
			delete(names, c.name)
		} else {
			names[c.name] = c.node
		}
	}
}

// node is a file or a directory.
type node struct {
	dir     bool
	modTime time.Time

	now     content // what readers see
	durable content
	pending []*fileOp // what leads from durable to now
	// reserved is the space from the start that was reserved, no matter the size.
	reserved int64
	links    int // names
	handles  int // open files

	names        map[string]*node // what readers see
	durableNames map[string]*node
	pendingNames []*dirOp // what leads from durableNames to names
}

// charged is the space that a file takes.
func (n *node) charged() int64 { return max(n.now.size, n.reserved) }

func newDir() *node {
	return &node{dir: true, modTime: time.Now(), names: map[string]*node{}, durableNames: map[string]*node{}}
}

// settle applies the sure head of pending to durable.
func (n *node) settle() {
	for len(n.pending) > 0 && n.pending[0].sure {
		n.pending[0].apply(&n.durable)
		n.pending = n.pending[1:]
	}
}

// change applies changes to a directory, to become durable with its SyncDir.
func (n *node) change(needs *dirOp, changes ...change) *dirOp {
	op := &dirOp{dir: n, changes: changes, needs: needs}
	for _, c := range changes {
		if old := n.names[c.name]; old != nil {
			old.links--
		}
		if c.node != nil {
			c.node.links++
		}
	}
	op.apply(n.names)
	n.pendingNames = append(n.pendingNames, op)
	n.modTime = time.Now()
	return op
}

// commit makes a directory's changes durable up to last, or all with nil.
func (n *node) commit(last *dirOp) {
	for len(n.pendingNames) > 0 {
		op := n.pendingNames[0]
		n.pendingNames = n.pendingNames[1:]
		if op.needs != nil && !op.needs.durable {
			op.needs.dir.commit(op.needs)
		}
		op.apply(n.durableNames)
		op.durable = true
		if op == last {
			return
		}
	}
}

// sync makes a file's bytes and size durable.
func (n *node) sync() {
	n.durable = n.now.clone()
	n.pending = nil
}
