package tiering

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Whatever a power loss leaves of the cache, each block is right or missing.
func TestCacheAfterPowerLoss(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	mem := vfs.NewMem()
	blocks := map[blockID][]byte{}
	now := func() time.Time { return time.Unix(1, 0) }
	lost, kept, crashes := 0, 0, 0
	check := func(v vfs.Event) {
		crashes++
		c, err := openDiskCache(mem.CrashClone(rng), "cache", 1<<20, testBlock, testLogger(t), now)
		if err != nil {
			t.Fatalf("open after a crash at %v: %v", v, err)
		}
		c.muted = time.Unix(2, 0)
		for id, want := range blocks {
			buf := make([]byte, len(want))
			if !c.get(id, buf) {
				lost++
			} else if kept++; !bytes.Equal(buf, want) {
				t.Fatalf("crash at %v: wrong bytes of block %d", v, id.block)
			}
		}
	}
	c, err := openDiskCache(mem, "cache", 8*charge(cacheHeader+testBlock), testBlock, testLogger(t), now)
	if err != nil {
		t.Fatal(err)
	}
	mem.OnOp(check)
	for i := range 20 { // more than fit: old ones are removed
		id := blockID{"data/key", int64(i % 12)}
		if blocks[id] == nil {
			blocks[id] = bytes.Repeat([]byte{byte(i + 1)}, testBlock-i*7)
		}
		c.put(id, blocks[id])
		if i%5 == 4 {
			c.drop(id)
		}
	}
	mem.OnOp(nil)
	if lost == 0 || kept == 0 || crashes < 50 {
		t.Errorf("%d crashes lost %d blocks and kept %d: nothing was tested", crashes, lost, kept)
	}
}

// A disk that fails costs GETs, never a read.
func TestCacheOnFailingDisk(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpOpen, vfs.OpRead, vfs.OpWrite, vfs.OpRename, vfs.OpRemove} {
		t.Run(string(op), func(t *testing.T) {
			fault := vfs.NewFault(vfs.NewMem())
			limit := int64(200 << 10) // less than there is: files come and go
			if op == vfs.OpRead {
				limit = 1 << 20
			}
			r := newReadRig(t, 3, func(o *ReaderOptions) {
				o.FS, o.CacheDir, o.CacheBytes, o.Logger = fault, "cache", limit, nil
			})
			r.checkAll(t, 30_000)
			r.reopen(t) // memory is empty again
			fault.Add(vfs.Rule{Op: op, Err: syscall.EIO})
			r.checkAll(t, 30_000)
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if fault.Fired(op) == 0 {
				t.Errorf("no %s failed", op)
			}
			fault.Clear()
			r.reopen(t)
			r.checkAll(t, 30_000)
			if s := r.Stats(); s.CacheBytes > limit {
				t.Errorf("%d bytes cached, limit %d", s.CacheBytes, limit)
			}
		})
	}
}

// crashPoint lets steps operations happen, and the next one or not; then the
// process is dead for everyone.
type crashPoint struct {
	mu    sync.Mutex
	steps int
	half  bool // the operation at the crash happens, its answer is lost
	dead  bool
}

var errDead = fmt.Errorf("crashed: %w", objstore.ErrUnknown)

func (c *crashPoint) do(f func() error) error {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return errDead
	}
	if c.steps--; c.steps >= 0 {
		c.mu.Unlock()
		return f()
	}
	c.dead = true
	c.mu.Unlock()
	if c.half {
		if err := f(); err != nil {
			return err
		}
	}
	return errDead
}

func (c *crashPoint) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// The uploader dies at every step. Then every row has its object, local bytes
// are given up only for what is indexed, and the next start brings the rest.
func TestUploaderCrashAtEveryStep(t *testing.T) {
	segs := segments(2, 3)
	for steps := 0; ; steps++ {
		survived := false
		for _, half := range []bool{false, true} {
			c := &crashPoint{steps: steps, half: half}
			r := newRig(t, func(o *UploaderOptions, r *uploadRig) {
				o.Logger = nil
				r.b.put = func(_ context.Context, _ string, next func() error) error { return c.do(next) }
				r.b.head = func(string) error { return c.do(func() error { return nil }) }
				o.Index = crashIndex{r.x, c}
			})
			r.l.add(segs...)
			r.Kick()
			waitFor(t, "crash or end", func() bool { return c.isDead() || r.l.left() == 0 })
			r.Close()
			survived = survived || !c.isDead()
			checkNothingLost(t, r, segs)
			again, err := NewUploader(UploaderOptions{Bucket: r.b.Bucket, Index: r.x, Local: r.l, Incarnation: "01K00000000000000000000009"})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(again.Drain(t.Context()), again.Close()); err != nil {
				t.Fatal(err)
			}
			checkNothingLost(t, r, segs)
			if r.l.left() != 0 {
				t.Fatalf("crash after %d steps: %d segments left after the restart", steps, r.l.left())
			}
		}
		if survived {
			if steps < 3*len(segs) {
				t.Errorf("only %d steps", steps)
			}
			return
		}
	}
}

type crashIndex struct {
	*memIndex
	c *crashPoint
}

func (x crashIndex) Add(ctx context.Context, s Segment) error {
	return x.c.do(func() error { return x.memIndex.Add(ctx, s) })
}

func checkNothingLost(t *testing.T, r *uploadRig, segs []*testSegment) {
	t.Helper()
	local := r.l.Closed(1 << 20)
	for _, s := range segs {
		var has ranges
		for _, row := range r.x.all(s.meta.TP) {
			got, err := getAll(t.Context(), r.b.Bucket, row.Key(), 0, row.Size)
			if row.Base == s.meta.Base && (err != nil || !bytes.Equal(got, s.object)) {
				t.Fatalf("row %s without its object: %v", row.Key(), err)
			}
			has.add(row.Base, row.Last)
		}
		isLocal := false
		for _, l := range local {
			isLocal = isLocal || l.TP == s.meta.TP && l.Base == s.meta.Base
		}
		if !isLocal && !has.hold(s.meta.Base, s.meta.Last) {
			t.Fatalf("%s %d-%d is neither local nor indexed", s.meta.TP, s.meta.Base, s.meta.Last)
		}
	}
}
