package wal

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
)

func randomTP(rng *rand.Rand) ids.TopicPartition {
	return ids.TopicPartition{Topic: ids.TopicID{byte(rng.IntN(3)), 1}, Partition: rng.Int32N(4)}
}

func randomHeld(rng *rand.Rand, incs []ids.Incarnation) Held {
	h := Held{TP: randomTP(rng), Epoch: rng.Int32(), LogStart: rng.Int64N(100), End: rng.Int64(), Giver: []string{"", "meta/topics/a/1"}[rng.IntN(2)]}
	if rng.IntN(8) == 0 {
		h.Disk = ids.DiskID{1, 2, byte(rng.Uint32())}
	}
	for range rng.IntN(3) {
		h.Older = append(h.Older, OlderRange{incs[rng.IntN(len(incs))], rng.Uint64(), rng.Uint64(), rng.Int64(), rng.Int64()})
	}
	return h
}

func randomFooter(rng *rand.Rand, incs []ids.Incarnation) *Footer {
	f := &Footer{Cluster: [16]byte{1}, Stream: incs[0], Seq: rng.Uint64(), Nonce: [16]byte{byte(rng.Uint32())}, CreatedMs: rng.Int64()}
	if rng.IntN(4) == 0 {
		f.Seal = &Seal{By: incs[1]}
		for range rng.IntN(4) {
			f.Seal.Heirs = append(f.Seal.Heirs, Heir{TP: randomTP(rng), Epoch: rng.Int32(), To: incs[rng.IntN(3)], Released: rng.IntN(2) == 0})
			if rng.IntN(8) == 0 {
				f.Seal.Heirs = append(f.Seal.Heirs, Heir{TP: randomTP(rng), Epoch: rng.Int32(), Disk: ids.DiskID{7, 7}, End: rng.Int64()})
			}
		}
		return f
	}
	f.Pos, f.End, f.CheckpointAt = rng.Uint64(), rng.Uint64(), rng.Uint64()
	pos := int64(headerSize)
	for range rng.IntN(20) {
		b := Batch{TP: randomTP(rng), Epoch: rng.Int32(), Base: rng.Int64N(1 << 40), Pos: pos, Length: rng.Int64N(1 << 20),
			MaxTimestamp: rng.Int64(), ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, Attributes: int16(rng.Uint32())}
		b.Last = b.Base + rng.Int64N(1000)
		if rng.IntN(2) == 0 {
			b.ProducerID, b.ProducerEpoch, b.BaseSequence = rng.Int64(), int16(rng.Uint32()), rng.Int32()
		}
		pos += b.Length
		f.Batches = append(f.Batches, b)
	}
	for range rng.IntN(3) {
		f.LogStarts = append(f.LogStarts, LogStart{randomTP(rng), rng.Int32(), rng.Int64()})
		f.Acceptances = append(f.Acceptances, Acceptance(randomHeld(rng, incs)))
		f.Releases = append(f.Releases, Release{TP: randomTP(rng), Epoch: rng.Int32(), LogStart: rng.Int64(), End: rng.Int64(), To: incs[2], Older: randomHeld(rng, incs).Older})
	}
	if rng.IntN(2) == 0 {
		f.Checkpoint = &Checkpoint{Released: f.Releases}
		for range rng.IntN(3) {
			f.Checkpoint.Held = append(f.Checkpoint.Held, randomHeld(rng, incs))
		}
	}
	return f
}

func threeIncarnations() []ids.Incarnation {
	return []ids.Incarnation{ids.NewIncarnation(), ids.NewIncarnation(), ids.NewIncarnation()}
}

// What was encoded is read again, and neither a cut nor a flipped bit is taken
// for something else.
func TestFooterRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	incs := threeIncarnations()
	for range 300 {
		want := randomFooter(rng, incs)
		b := append(want.header(), want.encode()...)
		got, err := decodeFooter(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
		}
		at := headerSize + rng.IntN(len(b)-headerSize)
		cut := append(append([]byte{}, b[:at]...), b[at+1:]...)
		if f, err := decodeFooter(cut); err == nil {
			t.Fatalf("without byte %d it is taken for %+v", at, f)
		}
		b[at] ^= 1 << rng.IntN(8)
		if f, err := decodeFooter(b); err == nil {
			t.Fatalf("with a flipped bit at %d of %d it is taken for %+v", at, len(b), f)
		} else if !errors.Is(err, contract.ErrDamaged) && !errors.Is(err, contract.ErrVersion) {
			t.Fatalf("flipped bit: %v", err)
		}
	}
}

func FuzzFooter(f *testing.F) {
	rng := rand.New(rand.NewPCG(2, 2))
	incs := threeIncarnations()
	for range 20 {
		x := randomFooter(rng, incs)
		b := x.encode()
		f.Add(b[:len(b)-trailerSize], x.kind() == kindSeal, x.version() == diskVersion)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal, disks bool) {
		kind := byte(kindData)
		if seal {
			kind = kindSeal
		}
		got, err := decodeFooter(sealUp(b, kind, disks))
		if err != nil {
			return
		}
		again, err := decodeFooter(got.encode())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%v\nread  %+v\nagain %+v", err, got, again)
		}
	})
}

// sealUp puts a right trailer behind a footer's bytes.
func sealUp(b []byte, kind byte, disks bool) []byte {
	f := &Footer{Stream: ids.NewIncarnation()}
	if kind == kindSeal {
		f.Seal = &Seal{By: f.Stream}
	}
	whole := f.encode()
	t := whole[len(whole)-trailerSize:]
	t[0], t[1], t[2], t[3] = byte(len(b)), byte(len(b)>>8), byte(len(b)>>16), byte(len(b)>>24)
	if disks {
		t[4] = diskVersion
	}
	crc := footerCRC(b, t)
	t[8], t[9], t[10], t[11] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	return append(append([]byte{}, b...), t...)
}
