package agent

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

func (c *moveCluster) cluster() [16]byte {
	id, err := ids.ParseTopicID(c.nodes[0].meta.ClusterID())
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// sealUnseen kills an agent that has accepted nothing and seals its stream as one does who knows of
// nothing that was given to it.
func (c *moveCluster) sealUnseen(dead *moveNode, by *moveNode) {
	c.t.Helper()
	inc := dead.incarnation()
	dead.die()
	s, err := wal.SealStream(c.t.Context(), c.bucket, c.cluster(), inc, by.incarnation(), ownOnly)
	if err == nil {
		err = by.meta.PublishSealed(c.t.Context(), inc, s.At)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// ownOnly lists what a stream itself says of partitions that were released.
func ownOnly(st *wal.State) (out []wal.Heir) {
	for tp, r := range st.Released {
		out = append(out, wal.Heir{TP: tp, To: r.To, Epoch: r.Epoch, Released: true})
	}
	return out
}

// claims is how many claims the living agents have made.
func (c *moveCluster) claims() (n uint64) {
	for _, m := range c.nodes {
		n += m.manager.Stats().Claims
	}
	return n
}

// gather moves all partitions of a topic to one agent.
func (c *moveCluster) gather(to *moveNode, id ids.TopicID, partitions int32) {
	c.t.Helper()
	for _, n := range c.nodes {
		if n != to {
			if err := moveAll(n, id, partitions, to); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	for end := time.Now().Add(10 * time.Second); len(to.led(id, partitions)) < int(partitions); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatal("partitions do not come together")
		}
	}
}

// What is given to an agent whose seal does not know of it is claimed: by one of those who find out,
// with nothing lost or doubled, and for good.
func TestClaims(t *testing.T) {
	const partitions = 4
	for _, one := range []struct {
		name string
		// give has a give its partitions to b, which dies.
		give func(c *moveCluster, a, b, other *moveNode, id ids.TopicID) error
	}{
		{"sealed before the release", func(c *moveCluster, a, b, other *moveNode, id ids.TopicID) error {
			c.sealUnseen(b, other)
			return moveAll(a, id, partitions, b)
		}},
		{"sealed before the release is told", func(c *moveCluster, a, b, other *moveNode, id ids.TopicID) error {
			f := func() { c.sealUnseen(b, other) }
			a.afterRelease.Store(&f)
			return moveAll(a, id, partitions, b)
		}},
		{"releaser dies before it tells", func(c *moveCluster, a, b, other *moveNode, id ids.TopicID) error {
			f := func() {
				c.sealUnseen(b, other)
				a.die()
			}
			a.afterRelease.Store(&f)
			_ = moveAll(a, id, partitions, b) // it can't tell
			return nil
		}},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			c := newMoveCluster(t, time.Second)
			a, b, third := c.start(true), c.start(true), c.start(true)
			c.start(true)
			id := c.create(a, "t", partitions)
			c.gather(a, id, partitions)
			to := b.incarnation()
			c.write(id, partitions, func() {
				if err := one.give(c, a, b, third, id); err != nil {
					t.Error(err)
				}
			})
			if n := c.claims(); n != partitions {
				t.Errorf("%d claims were made for %d partitions", n, partitions)
			}
			b.bucket.Clear() // the zombie finds its gift
			for p := range int32(partitions) {
				err := b.stream.Change(t.Context(), wal.Change{Acceptances: []wal.Acceptance{{TP: ids.TopicPartition{Topic: id, Partition: p}, Epoch: 3, Giver: "?"}}})
				if !errors.Is(err, wal.ErrFenced) {
					t.Errorf("the sealed receiver accepts partition %d: %v", p, err)
				}
				if owner := third.meta.Owner(third.meta.Snapshot().TopicByID(id), p); owner.Incarnation == to {
					t.Errorf("partition %d is still said to be the sealed agent's", p)
				}
			}
		})
	}
}

// Who is named by a claim may die before it accepts. Its seal passes on what its sealer knows of; of a claim
// that it does not know the next one is beside that seal.
func TestClaimOfClaim(t *testing.T) {
	for _, unseen := range []bool{true, false} {
		t.Run(fmt.Sprintf("unseen=%v", unseen), func(t *testing.T) {
			t.Parallel()
			testClaimOfClaim(t, unseen)
		})
	}
}

func testClaimOfClaim(t *testing.T, unseen bool) {
	c := newMoveCluster(t, time.Second)
	a, b, b2, third := c.start(true), c.start(true), c.start(true), c.start(true)
	const partitions = 2
	id := c.create(a, "t", partitions)
	c.gather(a, id, partitions)
	var epochs [partitions]int32
	for p := range epochs {
		_, led := c.leader(ids.TopicPartition{Topic: id, Partition: int32(p)})
		epochs[p] = led.LeaderEpoch()
	}
	to, heir := b.incarnation(), b2.incarnation()
	c.write(id, partitions, func() {
		f := func() {
			c.sealUnseen(b, third)
			if unseen {
				c.sealUnseen(b2, third)
			} else {
				die := b2.die
				b2.beforeAccept.Store(&die)
			}
			giver := ""
			for seq := uint64(0); giver == ""; seq++ {
				f, err := wal.ReadFooter(t.Context(), c.bucket, a.incarnation(), seq, -1)
				if err == nil && len(f.Releases) == partitions {
					giver = wal.Key(a.incarnation(), seq)
				}
			}
			for p, epoch := range epochs {
				claim := wal.Claim{Dead: to, TP: ids.TopicPartition{Topic: id, Partition: int32(p)}, Epoch: epoch + 2, To: heir, Giver: giver, By: heir}
				if _, made, err := wal.PutClaim(t.Context(), c.bucket, c.cluster(), claim); err != nil || !made {
					t.Errorf("claim: %v, made %v", err, made)
				}
			}
		}
		a.afterRelease.Store(&f)
		if err := moveAll(a, id, partitions, b); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(10 * time.Second); !b2.dead.Load() && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
	})
	for p, epoch := range epochs {
		if _, led := c.leader(ids.TopicPartition{Topic: id, Partition: int32(p)}); led.LeaderEpoch() != epoch+3 {
			t.Errorf("leader epoch %d after a release and two claims, was %d", led.LeaderEpoch(), epoch)
		}
	}
	want := uint64(partitions)
	if !unseen {
		want = 0
		s, err := wal.ReadSealed(t.Context(), c.bucket, c.cluster(), heir)
		if err != nil || s == nil {
			t.Fatalf("the heir of the claims is not sealed: %v", err)
		}
		n := 0
		for _, h := range s.Seal.Heirs {
			if _, _, _, ok := wal.ParseClaimKey(h.Giver); ok {
				n++
			}
		}
		if n != partitions {
			t.Errorf("the seal passes on %d claims of %d: %+v", n, partitions, s.Seal.Heirs)
		}
	}
	if n := c.claims(); n != want {
		t.Errorf("the agents made %d claims, want %d", n, want)
	}
}

// A new topic may name an agent that is sealed already.
func TestClaimOfTopic(t *testing.T) {
	c := newMoveCluster(t, 3*time.Second)
	a, b, third := c.start(true), c.start(true), c.start(true)
	inc := b.incarnation()
	b.die()
	s, err := wal.SealStream(t.Context(), c.bucket, c.cluster(), inc, third.incarnation(), ownOnly)
	if err != nil {
		t.Fatal(err)
	}
	const partitions = 12
	topic, err := a.meta.CreateTopic(t.Context(), metadata.CreateTopic{Name: "t", Partitions: partitions, ReplicationFactor: -1})
	if err != nil {
		t.Fatal(err)
	}
	given := uint64(0)
	for p := range topic.Partitions {
		if topic.FirstOwner(p) == inc {
			given++
		}
	}
	if given == 0 {
		t.Fatal("nothing was given to the sealed agent")
	}
	if err := third.meta.PublishSealed(t.Context(), inc, s.At); err != nil {
		t.Fatal(err)
	}
	c.write(topic.ID, partitions, func() {})
	if n := c.claims(); n != given {
		t.Errorf("%d claims, want %d", n, given)
	}
	for p := range topic.Partitions {
		tp := ids.TopicPartition{Topic: topic.ID, Partition: p}
		want := fmt.Sprint(0)
		if topic.FirstOwner(p) == inc {
			want = fmt.Sprint(1)
		}
		if _, led := c.leader(tp); fmt.Sprint(led.LeaderEpoch()) != want {
			t.Errorf("%s has leader epoch %d, want %s", tp, led.LeaderEpoch(), want)
		}
	}
}

// Nobody is told of a release that is not in the bucket yet, nor does anybody act on it.
func TestReleaseIsToldWhenDurable(t *testing.T) {
	c := newMoveCluster(t, 5*time.Second)
	a, b := c.start(true), c.start(true)
	id := c.create(a, "t", 1)
	c.gather(a, id, 1)
	c.write(id, 1, func() {
		f := func() {
			a.bucket.Add(objstore.FaultRule{Method: objstore.MethodPut, Prefix: wal.Prefix, Kind: objstore.FaultThrottle, Probability: 1})
		}
		a.beforeRelease.Store(&f)
		done := make(chan error, 1)
		go func() { done <- moveAll(a, id, 1, b) }()
		time.Sleep(500 * time.Millisecond)
		if rows := c.rows("released/" + string(a.incarnation()) + "/"); len(rows) != 0 {
			t.Errorf("a release that is not durable was told: %v", rows)
		}
		if n := len(a.led(id, 1)); n != 1 {
			t.Error("the releaser has resigned before its release is durable")
		}
		a.bucket.Clear()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if n := len(b.led(id, 1)); n != 1 {
		t.Error("the receiver does not lead")
	}
}

// A produce request that comes to the next leader early waits for it; one for a partition that nobody gives
// to this agent does not.
func TestAwait(t *testing.T) {
	c := newMoveCluster(t, 5*time.Second)
	a, b := c.start(true), c.start(true)
	id := c.create(a, "t", 1)
	c.gather(a, id, 1)
	began := time.Now()
	if _, err := b.broker.Await(t.Context(), id, 0); !errors.Is(err, broker.ErrNotLeader) || time.Since(began) > 100*time.Millisecond {
		t.Errorf("a partition of another agent: %v after %v", err, time.Since(began))
	}
	accepts, goOn := make(chan struct{}, 10), make(chan struct{})
	f := func() {
		accepts <- struct{}{}
		<-goOn
	}
	b.beforeAccept.Store(&f)
	if err := moveAll(a, id, 1, b); err != nil {
		t.Fatal(err)
	}
	<-accepts
	timed := time.AfterFunc(100*time.Millisecond, func() { close(goOn) })
	defer timed.Stop()
	began = time.Now()
	p, err := b.broker.Await(t.Context(), id, 0)
	if err != nil || p.LeaderEpoch() < 1 {
		t.Fatalf("a partition that arrives: %v after %v", err, time.Since(began))
	}
	if took := time.Since(began); took > 450*time.Millisecond {
		t.Errorf("it was served %v later", took)
	}
}

// A partition is served when its acceptance is in the bucket, not before.
func TestAcceptanceComesFirst(t *testing.T) {
	c := newMoveCluster(t, 5*time.Second)
	a, b := c.start(true), c.start(true)
	id := c.create(a, "t", 1)
	c.gather(a, id, 1)
	accepts, goOn := make(chan struct{}, 10), make(chan struct{})
	f := func() {
		accepts <- struct{}{}
		<-goOn
	}
	c.write(id, 1, func() {
		b.beforeAccept.Store(&f)
		if err := moveAll(a, id, 1, b); err != nil {
			t.Error(err)
		}
		<-accepts
		time.Sleep(300 * time.Millisecond)
		if n := len(b.led(id, 1)); n != 0 {
			t.Error("the receiver serves a partition that it has not accepted")
		}
		close(goOn)
	})
}

// A topic that is deleted while its partitions move leaves nothing behind, and nothing stands still.
func TestTopicDeletedInRelease(t *testing.T) {
	for _, when := range []string{"before the release is durable", "before it is told", "before it is accepted"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			c := newMoveCluster(t, 5*time.Second) // nobody dies
			a, b := c.start(false), c.start(false)
			const partitions = 4
			other := c.create(a, "other", partitions)
			id := c.create(a, "t", partitions)
			c.gather(a, id, partitions)
			c.write(other, partitions, func() {
				var once sync.Once
				f := func() {
					once.Do(func() {
						if err := a.meta.DeleteTopic(t.Context(), id); err != nil {
							t.Error(err)
						}
					})
				}
				switch when {
				case "before the release is durable":
					a.beforeRelease.Store(&f)
				case "before it is told":
					a.afterRelease.Store(&f)
				default:
					b.beforeAccept.Store(&f)
				}
				if err := moveAll(a, id, partitions, b); err != nil {
					t.Error(err)
				}
				for end := time.Now().Add(10 * time.Second); len(c.rows("released/")) > 0; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("releases are still announced: %v", c.rows("released/"))
					}
				}
			})
			for _, n := range c.nodes {
				if got := n.led(id, partitions); len(got) > 0 {
					t.Errorf("a deleted topic is served: %v", got)
				}
			}
			if n := c.claims(); n != 0 {
				t.Errorf("%d claims", n)
			}
		})
	}
}
