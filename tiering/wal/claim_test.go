package wal

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Of all who claim a partition at once one decides, and all say the same; a stream with claims
// beside its seal is read as before.
func TestClaimDecidesOnce(t *testing.T) {
	ctx, b := t.Context(), objstore.NewMem()
	dead, tp := ids.NewIncarnation(), ids.TopicPartition{Topic: ids.NewTopicID(), Partition: 7}
	giver := Key(ids.NewIncarnation(), 12)
	const claimers = 8
	var wg sync.WaitGroup
	got, made := make([]*Claim, claimers), make([]bool, claimers)
	for i := range claimers {
		wg.Go(func() {
			me := ids.NewIncarnation()
			var err error
			if got[i], made[i], err = PutClaim(ctx, b, [16]byte{1}, Claim{Dead: dead, TP: tp, Epoch: 5, To: me, Giver: giver, By: me}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for i, c := range got {
		if *c != *got[0] {
			t.Errorf("claimer %d is told %+v, the first one %+v", i, *c, *got[0])
		}
		if made[i] {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d claimers take the claim for theirs", n)
	}
	key := ClaimKey(dead, tp, 5)
	if c, err := ReadClaim(ctx, b, [16]byte{1}, key); err != nil || *c != *got[0] || c.Key() != key || c.Giver != giver {
		t.Errorf("read %+v, %v", c, err)
	}
	if _, err := ReadClaim(ctx, b, [16]byte{2}, key); !errors.Is(err, contract.ErrForeign) {
		t.Errorf("read as another cluster: %v", err)
	}
	if _, err := ReadClaim(ctx, b, [16]byte{1}, ClaimKey(dead, tp, 6)); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("read what is not there: %v", err)
	}
	for _, bad := range []string{"", key + "/", strings.Replace(key, "/7/", "/07/", 1), Key(dead, 5), sealedKey(dead)} {
		if _, _, _, ok := ParseClaimKey(bad); ok {
			t.Errorf("%q is taken for a claim's key", bad)
		}
	}
}

func TestSealedStreamWithClaims(t *testing.T) {
	ctx, b := context.Background(), objstore.NewMem()
	w := newOwner(t, b, Options{})
	w.accept(part(0))
	heir := ids.NewIncarnation()
	if _, err := SealStream(ctx, b, [16]byte{}, w.inc, heir, heirsOf(heir)); err != nil {
		t.Fatal(err)
	}
	tp := part(1)
	if _, _, err := PutClaim(ctx, b, [16]byte{}, Claim{Dead: w.inc, TP: tp, Epoch: 1, To: heir, Giver: "meta/topics/t/1"}); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadSealed(ctx, b, [16]byte{}, w.inc); err != nil || s == nil || len(s.Seal.Heirs) != 1 {
		t.Errorf("read %+v, %v", s, err)
	}
	if all, err := ListStreams(ctx, b); err != nil || len(all) != 1 || all[0].Incarnation != w.inc {
		t.Errorf("streams %v, %v", all, err)
	}
}

// No seal leaves a partition that its incarnation has accepted without an heir: it would look as
// if it had never been accepted.
func TestSealListsAll(t *testing.T) {
	ctx, b := context.Background(), objstore.NewMem()
	w := newOwner(t, b, Options{})
	w.accept(part(0), part(1))
	heir := ids.NewIncarnation()
	if _, err := w.Release(ctx, []Release{{TP: part(1), Epoch: 4, To: heir}}); err != nil {
		t.Fatal(err)
	}
	for tp, heirs := range map[ids.TopicPartition][]Heir{
		part(0): {{TP: part(1), Epoch: 4, To: heir, Released: true}},
		part(1): {{TP: part(0), Epoch: 4, To: heir}},
	} {
		if _, err := SealStream(ctx, b, [16]byte{}, w.inc, heir, func(*State) []Heir { return heirs }); !errors.Is(err, ErrNoHeir) {
			t.Errorf("a seal without %s: %v", tp, err)
		}
	}
	w.accept(part(2)) // nothing was sealed
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
