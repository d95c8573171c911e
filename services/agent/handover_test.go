package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// hints are an agent's calls of others, which tests may spoil.
type hints struct {
	n        *moveNode
	prepare  func(ctx context.Context) error // nil: it goes through
	released func(ctx context.Context) error
}

// peers tells the agents of the test's process of moves; nil if they don't tell each other.
func (n *moveNode) peers() lead.Peers {
	if !n.c.rpc {
		return nil
	}
	n.hints.n = n
	return &n.hints
}

func (h *hints) to(a metadata.Agent) (*moveNode, error) {
	for _, n := range h.n.c.nodes {
		if n.incarnation() == a.Incarnation && !n.dead.Load() && !h.n.dead.Load() {
			return n, nil
		}
	}
	return nil, errors.New("it does not answer")
}

// Prepare implements lead.Peers.
func (h *hints) Prepare(ctx context.Context, to metadata.Agent, c lead.Coming) error {
	if h.prepare != nil {
		return h.prepare(ctx)
	}
	n, err := h.to(to)
	if err != nil {
		return err
	}
	return n.manager.Prepare(ctx, c)
}

// Released implements lead.Peers.
func (h *hints) Released(ctx context.Context, to metadata.Agent, r metadata.Released) error {
	if h.released != nil {
		return h.released(ctx)
	}
	n, err := h.to(to)
	if err != nil {
		return err
	}
	return n.manager.Released(ctx, r)
}

// A release that only the agents tell each other of is taken over, and once when it is told of twice.
func TestHandoverWithoutRows(t *testing.T) {
	c := newMoveCluster(t, 20*time.Second)
	c.rpc = true
	a, b := c.start(true), c.start(true)
	const partitions = 6
	id := c.create(a, "t", partitions)
	if err := moveAll(b, id, partitions, a); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); len(a.led(id, partitions)) < partitions && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	a.releasesLost.Store(true)
	worst := c.write(id, partitions, func() {
		if err := moveAll(a, id, partitions, b); err == nil {
			t.Error("the release was told by the metadata store")
		}
		for end := time.Now().Add(10 * time.Second); len(b.led(id, partitions)) < partitions; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the receiver leads %d of %d partitions", len(b.led(id, partitions)), partitions)
			}
		}
		a.releasesLost.Store(false) // the row comes late
	})
	t.Logf("longest gap between acks: %v", worst)
	if worst > 5*time.Second {
		t.Errorf("gap of %v", worst)
	}
}

// Hints that get lost, hang or are refused cost time, and nothing else.
func TestHandoverFails(t *testing.T) {
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	refuse := func(context.Context) error { return errors.New("refused") }
	for name, f := range map[string]func(context.Context) error{"hangs": hang, "refuses": refuse} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newMoveCluster(t, 20*time.Second)
			c.rpc = true
			a, _ := c.start(true), c.start(true)
			a.hints.prepare, a.hints.released = f, f
			const partitions = 6
			id := c.create(a, "t", partitions)
			worst := c.write(id, partitions, func() {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if err := a.manager.Drain(ctx); err != nil {
					t.Error(err)
				}
			})
			if n := len(a.led(id, partitions)); n > 0 {
				t.Errorf("%d partitions are still led by the agent that was drained", n)
			}
			if worst > 2*time.Second { // reading ahead is waited for while partitions are served
				t.Errorf("gap of %v", worst)
			}
		})
	}
}

// A hint of a release that is not in the durable part of its stream is not acted on, though the object is there.
func TestHandoverNotDurable(t *testing.T) {
	c := newMoveCluster(t, 20*time.Second)
	c.rpc = true
	a, b := c.start(true), c.start(true)
	const partitions = 4
	id := c.create(a, "t", partitions)
	led, inc := a.led(id, partitions), a.incarnation()
	if len(led) == 0 {
		t.Fatal("the agent leads nothing")
	}
	release := func(seq uint64) metadata.Released {
		var rs []wal.Release
		for _, tp := range led {
			rs = append(rs, wal.Release{TP: tp, Epoch: 1, To: b.incarnation()})
		}
		c.putRelease(a, inc, seq, rs)
		return metadata.Released{Incarnation: inc, Seq: seq}
	}
	before := len(b.led(id, partitions))
	gap := release(a.stream.Next() + 1) // one is missing before it
	for _, r := range []metadata.Released{gap, {Incarnation: inc, Seq: 1 << 40}, {Incarnation: b.incarnation(), Seq: 0}} {
		if err := b.manager.Released(t.Context(), r); err == nil {
			t.Errorf("a hint of %v is acted on", r)
		}
	}
	a.die() // its stream has an object that it did not put
	if n := len(b.led(id, partitions)); n != before {
		t.Errorf("the receiver leads %d partitions instead of %d", n, before)
	}
}

// putRelease puts an object with releases into an agent's stream, which that one did not do.
func (c *moveCluster) putRelease(n *moveNode, inc ids.Incarnation, seq uint64, rs []wal.Release) {
	c.t.Helper()
	ctx, scratch := c.t.Context(), objstore.NewMem()
	cluster, err := ids.ParseTopicID(n.meta.ClusterID())
	if err != nil {
		c.t.Fatal(err)
	}
	s, err := wal.Open(ctx, wal.Options{Bucket: scratch, Cluster: cluster, Incarnation: inc, Pool: contract.NewPool(1 << 20), Announce: func([]*contract.Entry, error) {}})
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	for at := uint64(0); at < seq; {
		if at, err = s.Release(ctx, rs); err != nil {
			c.t.Fatal(err)
		}
	}
	r, _, err := scratch.Get(ctx, wal.Key(inc, seq), 0, -1)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil {
		_, err = objstore.PutCreateOnly(ctx, c.bucket, wal.Key(inc, seq), bytes.NewReader(b), objstore.PutOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// What was tiered between the reading ahead and the release is not tiered again, and nothing is lost.
func TestHandoverStaleRows(t *testing.T) {
	c := newMoveCluster(t, 20*time.Second)
	c.rpc = true
	a, b := c.start(true), c.start(true)
	const partitions = 4
	id := c.create(a, "t", partitions)
	if err := moveAll(b, id, partitions, a); err != nil {
		t.Fatal(err)
	}
	tiered := func(n *moveNode) (least int64) {
		led, err := n.broker.Led("t")
		if err != nil || len(led) < partitions {
			return -1
		}
		least = led[0].TieredEnd
		for _, p := range led {
			least = min(least, p.TieredEnd)
		}
		return least
	}
	a.hints.prepare = func(ctx context.Context) error {
		if err := b.manager.Prepare(ctx, lead.Coming{Partitions: a.led(id, partitions), Streams: []ids.Incarnation{a.incarnation()}}); err != nil {
			t.Error(err)
		}
		before := tiered(a)
		for ctx.Err() == nil && tiered(a) <= before {
			time.Sleep(time.Millisecond)
		}
		if tiered(a) <= before {
			t.Error("nothing was tiered meanwhile")
		}
		return nil
	}
	c.write(id, partitions, func() {
		for end := time.Now().Add(10 * time.Second); tiered(a) <= 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nothing is tiered")
			}
		}
		if err := moveAll(a, id, partitions, b); err != nil {
			t.Error(err)
		}
		at := tiered(a)
		for end := time.Now().Add(10 * time.Second); tiered(b) <= max(at, 0); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the receiver tiers nothing: %d", tiered(b))
			}
		}
	})
	for p := range int32(partitions) {
		next := int64(0)
		err := b.meta.ScanSegments(t.Context(), id, func(r metadata.SegmentRow) error {
			if r.TP.Partition == p {
				if r.Base != next {
					t.Errorf("partition %d: a segment from %d on, the one before ends at %d", p, r.Base, next)
				}
				next = r.Last + 1
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// The others give nothing to an agent that stops, however long it takes to leave and however uneven that makes them.
func TestStoppingIsGivenNothing(t *testing.T) {
	c := newMoveCluster(t, 200*time.Millisecond)
	a, b := c.start(false), c.start(false)
	const partitions = 12
	id := c.create(a, "t", partitions)
	slow := func(call kv.Call) { // it is registered for long while it leads nothing
		if call.Method == "Commit" && strings.HasPrefix(call.Keys[0], "agent/") && len(a.led(id, partitions)) == 0 {
			time.Sleep(3 * time.Second)
		}
	}
	var given atomic.Int32
	accept := func() { given.Add(1) }
	led := len(a.led(id, partitions))
	a.beforeKV.Store(&slow)
	a.beforeAccept.Store(&accept)
	if err := a.manager.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := given.Load(); n > 0 || led == 0 {
		t.Errorf("it had %d partitions, and accepted others %d times while it stopped", led, n)
	}
	if n := len(b.led(id, partitions)); n != partitions {
		t.Errorf("the other leads %d of %d partitions", n, partitions)
	}
}
