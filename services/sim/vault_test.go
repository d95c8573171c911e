package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/wal"
)

// vault is the bucket that all share. It sees every object that comes and goes, judges
// whether it may, and counts what the protocol has done.
type vault struct {
	*objstore.Mem
	w *world

	mu      sync.Mutex
	streams map[ids.Incarnation]*stream
	copies  map[ids.TopicPartition]map[int64]int // of batches in streams, by base offset
	covered map[ids.TopicPartition][]span        // offsets that data/ has, merged
	epochs  map[ids.TopicPartition]int32         // the greatest that was accepted
	counts
}

// counts are what the objects of a run show.
type counts struct {
	objects, seals, voidSeals, heirs, releases, acceptances, carried, trimmed, segments, claims int
}

func (c *counts) add(o counts) {
	c.objects += o.objects
	c.seals += o.seals
	c.voidSeals += o.voidSeals
	c.heirs += o.heirs
	c.releases += o.releases
	c.acceptances += o.acceptances
	c.carried += o.carried
	c.trimmed += o.trimmed
	c.segments += o.segments
	c.claims += o.claims
}

func (c counts) String() string {
	return fmt.Sprintf("objects %d, seals %d, void seals %d, heirs %d, releases %d, claims %d, carried batches %d, acceptances %d, trimmed objects %d, segments %d",
		c.objects, c.seals, c.voidSeals, c.heirs, c.releases, c.claims, c.carried, c.acceptances, c.trimmed, c.segments)
}

// stream is what the vault has seen of one.
type stream struct {
	data    map[uint64]*wal.Footer // present
	low     uint64                 // the lowest number present
	next    uint64                 // behind the greatest that ever was
	used    map[uint64]bool        // numbers that there were objects of
	seals   map[uint64]bool        // whether each is void
	sealed  bool
	sealAt  uint64
	accepts map[ids.TopicPartition]int32
}

// span are offsets from base to last.
type span struct{ base, last int64 }

func newVault(w *world) *vault {
	return &vault{Mem: objstore.NewMem(), w: w, streams: map[ids.Incarnation]*stream{}, copies: map[ids.TopicPartition]map[int64]int{},
		covered: map[ids.TopicPartition][]span{}, epochs: map[ids.TopicPartition]int32{}}
}

func (v *vault) stream(inc ids.Incarnation) *stream {
	s := v.streams[inc]
	if s == nil {
		s = &stream{data: map[uint64]*wal.Footer{}, used: map[uint64]bool{}, seals: map[uint64]bool{}, accepts: map[ids.TopicPartition]int32{}}
		v.streams[inc] = s
	}
	return s
}

// put stores an object for the agent behind a link.
func (v *vault) put(l *link, key string, body objstore.Body, opts objstore.PutOptions) (objstore.ObjectInfo, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	info, err := v.Mem.Put(context.Background(), key, body, opts)
	if err != nil {
		return info, err
	}
	switch {
	case strings.HasPrefix(key, "wal/"):
		if !opts.IfNoneMatch {
			v.w.trace.violate("I4: %s put %s without If-None-Match", l.inc, key)
		}
		v.stored(l, key)
	case strings.HasPrefix(key, tiering.DataPrefix):
		v.tiered(l, key)
	}
	return info, nil
}

// stored looks at a new object of a stream.
func (v *vault) stored(l *link, key string) {
	inc, seq, err := wal.ParseKey(key)
	if err != nil {
		inc, name, _ := strings.Cut(strings.TrimPrefix(key, "wal/"), "/")
		if name == "sealed" {
			v.marked(l, v.stream(ids.Incarnation(inc)), ids.Incarnation(inc))
			return
		}
		v.counts.claims++ // what else lies beside a seal
		v.w.trace.add("agent %d: claim %s", l.slot, key)
		return
	}
	s := v.stream(inc)
	f, err := wal.ReadFooter(context.Background(), v.Mem, inc, seq, -1)
	if err != nil {
		v.w.trace.violate("%s can't be read: %v", key, err)
		return
	}
	if f.Seal != nil {
		before := s.data[seq-1]
		void := s.used[seq] || seq > 0 && before == nil
		s.seals[seq] = void
		if void {
			v.counts.voidSeals++
		}
		v.w.trace.add("agent %d: seal %s, void %v, heirs %d", l.slot, key, void, len(f.Seal.Heirs))
		return
	}
	if l.inc != inc {
		v.w.trace.violate("I4: %s wrote %s", l.inc, key)
	}
	if _, ok := s.seals[seq-1]; ok && seq > 0 && !s.seals[seq-1] {
		v.w.trace.add("agent %d: %s behind a seal", l.slot, key)
	}
	v.counts.objects++
	s.data[seq], s.used[seq], s.next = f, true, max(s.next, seq+1)
	for _, b := range f.Batches {
		m := v.copies[b.TP]
		if m == nil {
			m = map[int64]int{}
			v.copies[b.TP] = m
		}
		if m[b.Base] > 0 {
			v.counts.carried++
		}
		m[b.Base]++
	}
	v.counts.releases += len(f.Releases)
	v.counts.acceptances += len(f.Acceptances)
	for _, a := range f.Acceptances {
		s.accepts[a.TP] = a.Epoch
		v.w.trace.add("agent %d: %s accepts %s epoch %d from %d", l.slot, key, a.TP, a.Epoch, a.End)
	}
	for _, r := range f.Releases {
		v.w.trace.add("agent %d: %s releases %s epoch %d at %d to %s", l.slot, key, r.TP, r.Epoch, r.End, r.To)
	}
}

// marked looks at a stream that was marked as sealed: its seal must not be void, and nothing that
// is in front of it may come later.
func (v *vault) marked(l *link, s *stream, inc ids.Incarnation) {
	at := v.sealOf(inc)
	void, ok := s.seals[at]
	if !ok || void {
		v.w.trace.violate("I4: %s is marked as sealed at %d, where is a seal %v, void %v", inc, at, ok, void)
	}
	s.sealed, s.sealAt = true, at
	v.counts.seals++
	f, err := wal.ReadFooter(context.Background(), v.Mem, inc, at, -1)
	if err != nil || f.Seal == nil {
		v.w.trace.violate("the seal %s/%d can't be read: %v", inc, at, err)
		return
	}
	for _, h := range f.Seal.Heirs {
		if !h.Released {
			v.counts.heirs++
		}
		v.w.trace.add("agent %d: %s is sealed at %d: %s epoch %d goes to %s, released %v, given by %q", l.slot, inc, at, h.TP, h.Epoch, h.To, h.Released, h.Giver)
	}
}

// sealOf is the number that the mark of a stream names.
func (v *vault) sealOf(inc ids.Incarnation) uint64 {
	s, err := wal.ReadSealed(context.Background(), v.Mem, v.w.cluster(), inc)
	if err != nil || s == nil {
		v.w.trace.violate("sealed stream %s can't be read: %v", inc, err)
		return 0
	}
	return s.At
}

// tiered notes the offsets of a new segment.
func (v *vault) tiered(l *link, key string) {
	k, err := tiering.ParseSegmentKey(key)
	if err != nil {
		v.w.trace.violate("%s put %s: %v", l.inc, key, err)
		return
	}
	v.counts.segments++
	v.w.trace.add("agent %d: segment %s", l.slot, key)
	r, _, err := v.Mem.Get(context.Background(), key, 0, -1)
	if err != nil {
		v.w.trace.violate("read %s: %v", key, err)
		return
	}
	defer r.Close()
	b := make([]byte, 0, 4096)
	for buf := make([]byte, 4096); ; {
		n, err := r.Read(buf)
		b = append(b, buf[:n]...)
		if err != nil {
			break
		}
	}
	if k.Generation == 0 {
		v.checkSegment(key, k, b)
	}
	s := append(v.covered[k.TP], span{k.Base, k.Last})
	slices.SortFunc(s, func(a, b span) int { return int(a.base - b.base) })
	out := s[:1]
	for _, n := range s[1:] {
		if o := &out[len(out)-1]; n.base <= o.last+1 {
			o.last = max(o.last, n.last)
		} else {
			out = append(out, n)
		}
	}
	v.covered[k.TP] = out
}

// checkSegment holds a segment against what clients know (I3).
func (v *vault) checkSegment(key string, k tiering.SegmentKey, b []byte) {
	next := k.Base
	for next <= k.Last {
		h, err := batch.Parse(b)
		if err != nil || h.BaseOffset != next {
			v.w.trace.violate("I3: %s has no batch at %d: %v", key, next, err)
			return
		}
		v.w.ledger.records(v.w, k.TP, b[:h.Size()], "segment "+key, true)
		next, b = h.LastOffset()+1, b[h.Size():]
	}
}

// remove deletes an object for the agent behind a link, if it may go.
func (v *vault) remove(l *link, key string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if strings.HasPrefix(key, "wal/") {
		if inc, seq, err := wal.ParseKey(key); err == nil {
			v.trim(l, key, v.stream(inc), seq)
		} else {
			v.w.trace.violate("I4: %s deletes %s", l.inc, key)
		}
	}
	return v.Mem.Delete(context.Background(), key)
}

// trim judges the deletion of an object of a stream: in order, neither the last one nor a seal, and all
// that is in it is elsewhere.
func (v *vault) trim(l *link, key string, s *stream, seq uint64) {
	f := s.data[seq]
	if f == nil {
		if _, ok := s.seals[seq]; ok && !(s.seals[seq]) {
			v.w.trace.violate("I4: %s deletes the seal %s", l.inc, key)
		}
		return // deleted before
	}
	delete(s.data, seq)
	v.counts.trimmed++
	behind := s.sealed && seq > s.sealAt // never counted
	for n := range s.data {
		if n < seq && !behind {
			v.w.trace.violate("I4: %s deletes %s out of order: %d is there", l.inc, key, n)
		}
	}
	if seq+1 == s.next && !s.sealed {
		v.w.trace.violate("I4: %s deletes %s, the last of its stream", l.inc, key)
	}
	for _, b := range f.Batches {
		m := v.copies[b.TP]
		if m[b.Base]--; m[b.Base] > 0 || behind || v.w.ledger.deletedBefore(b.TP, b.Last+1) {
			continue
		}
		delete(m, b.Base)
		if !v.has(b.TP, b.Base, b.Last) {
			v.w.trace.violate("I7: %s deletes %s, which alone has offsets %d to %d of %s", l.inc, key, b.Base, b.Last, b.TP)
		}
	}
}

// has tells whether data/ has the offsets.
func (v *vault) has(tp ids.TopicPartition, base, last int64) bool {
	for _, s := range v.covered[tp] {
		if s.base <= base && last <= s.last {
			return true
		}
	}
	return false
}

func (v *vault) count() counts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.counts
}
