package broker

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// metaIndex is the metadata store's segment index as tiering sees it.
type metaIndex struct {
	meta   *metadata.Store
	recent recentRows
}

var (
	_ tiering.Index        = (*metaIndex)(nil)
	_ tiering.CompactIndex = (*metaIndex)(nil)
)

// NewIndex returns the segment index of a metadata store.
func NewIndex(meta *metadata.Store) tiering.Index { return &metaIndex{meta: meta} }

func segmentOf(r metadata.SegmentRow) tiering.Segment {
	return tiering.Segment{
		SegmentKey: tiering.SegmentKey{TP: r.TP, Base: r.Base, Last: r.Last, Epoch: r.Epoch, Incarnation: r.Incarnation, Generation: r.Generation},
		Size:       r.Size, LogSize: r.LogSize, Records: r.Records, MinTimestamp: r.MinTimestamp, MaxTimestamp: r.MaxTimestamp,
		LastStable: r.LastStable, Uploaded: r.Uploaded,
	}
}

// RowOf is the row of the index that a segment has.
func RowOf(s tiering.Segment) metadata.SegmentRow {
	return metadata.SegmentRow{TP: s.TP, SegmentID: rowID(s.SegmentKey), Size: s.Size, LogSize: s.LogSize, Records: s.Records,
		MinTimestamp: s.MinTimestamp, MaxTimestamp: s.MaxTimestamp, LastStable: s.LastStable, Uploaded: s.Uploaded}
}

func rowID(k tiering.SegmentKey) metadata.SegmentID {
	return metadata.SegmentID{Base: k.Base, Last: k.Last, Epoch: k.Epoch, Incarnation: k.Incarnation, Generation: k.Generation}
}

// Segments implements tiering.Index.
func (x *metaIndex) Segments(ctx context.Context, tp ids.TopicPartition, from int64, limit int) ([]tiering.Segment, error) {
	rows, err := x.meta.Segments(ctx, tp, from, limit)
	if err != nil {
		return nil, err
	}
	out := make([]tiering.Segment, len(rows))
	for i, r := range rows {
		out[i] = segmentOf(r)
	}
	return out, nil
}

// Add implements tiering.Index.
func (x *metaIndex) Add(ctx context.Context, s tiering.Segment) error { return x.Replace(ctx, s, nil) }

// Replace implements tiering.CompactIndex.
func (x *metaIndex) Replace(ctx context.Context, s tiering.Segment, replaced []tiering.SegmentKey) error {
	x.recent.forget(replaced) // whatever becomes of it
	err := x.replace(ctx, s, replaced)
	if err == nil {
		x.recent.note(s, replaced, time.Now())
	}
	return err
}

func (x *metaIndex) replace(ctx context.Context, s tiering.Segment, replaced []tiering.SegmentKey) error {
	err := x.meta.ReplaceSegments(ctx, RowOf(s), rowIDs(replaced))
	if errors.Is(err, metadata.ErrFenced) {
		return fmt.Errorf("%w: %w", tiering.ErrFenced, err)
	}
	return err
}

// Drop implements tiering.Index.
func (x *metaIndex) Drop(ctx context.Context, tp ids.TopicPartition, keys []tiering.SegmentKey) error {
	x.recent.forget(keys)
	return x.meta.DropSegments(ctx, tp, rowIDs(keys))
}

func rowIDs(keys []tiering.SegmentKey) []metadata.SegmentID {
	out := make([]metadata.SegmentID, len(keys))
	for i, k := range keys {
		out[i] = rowID(k)
	}
	return out
}

// localTier shows the uploader what is closed on this disk.
type localTier Broker

var _ tiering.Local = (*localTier)(nil)

// Closed implements tiering.Local.
func (t *localTier) Closed(limit int) []tiering.LocalSegment {
	b := (*Broker)(t)
	var out []tiering.LocalSegment
	b.waiting.each(func(p *Partition, s storage.ClosedSegment, _ int, _ int64) bool {
		base := s.Meta.Base
		out = append(out, tiering.LocalSegment{TP: p.tp, Base: base, Last: s.Meta.Last, Bytes: s.Bytes, ClosedAt: s.ClosedAt,
			Open: func() (tiering.Source, error) {
				r, err := p.log.OpenSegment(base)
				if err != nil {
					return nil, err
				}
				return &source{SegmentReader: r, epoch: p.LeaderEpoch()}, nil
			}})
		return len(out) < limit
	})
	return out
}

// Lag implements tiering.Local.
func (t *localTier) Lag() (l tiering.Lag) {
	(*Broker)(t).waiting.each(func(_ *Partition, s storage.ClosedSegment, n int, bytes int64) bool {
		l.Segments += n
		l.Bytes += bytes
		if l.Oldest.IsZero() || s.ClosedAt.Before(l.Oldest) {
			l.Oldest = s.ClosedAt
		}
		return true
	})
	return l
}

// Tiered implements tiering.Local.
func (t *localTier) Tiered(s tiering.Segment) {
	b := (*Broker)(t)
	if p, err := b.Partition(s.TP.Topic, s.TP.Partition); err == nil {
		p.addTiered(s)
		b.waiting.turn(p)
		b.house.touch(s.TP)
	}
}

// uploads tells whether closed segments of the topic go to the bucket.
func uploads(t *Topic) bool { return t.Config.RemoteStorage && !t.Config.RemoteCopyDisabled }

// closedWaiting returns the partition's oldest closed segment that is to be
// uploaded, and how many there are and their bytes.
func (p *Partition) closedWaiting() (first storage.ClosedSegment, n int, bytes int64) {
	if p.gone.Load() || p.leaving.Load() || p.older.Load() != nil || !uploads(p.topic.Load()) { // what is older is tiered first
		return first, 0, 0
	}
	return p.log.ClosedSince(max(p.tiered.Load(), p.log.Offsets().Start))
}

// waitingList holds the partitions that have something for the uploader, those
// that waited longest first. A partition goes to the end when one of its
// segments was uploaded. What does not belong there any more goes when it is
// met.
type waitingList struct {
	mu   sync.Mutex
	list *list.List // of *Partition
	at   map[*Partition]*list.Element
}

func newWaitingList() *waitingList {
	return &waitingList{list: list.New(), at: map[*Partition]*list.Element{}}
}

func (w *waitingList) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list.Len()
}

// add puts a partition at the end, unless it is in the list.
func (w *waitingList) add(p *Partition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at[p] == nil {
		w.at[p] = w.list.PushBack(p)
	}
}

// turn puts a partition that was served at the end, or takes it out.
func (w *waitingList) turn(p *Partition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.at[p]
	if e == nil {
		return
	}
	if _, n, _ := p.closedWaiting(); n > 0 {
		w.list.MoveToBack(e)
		return
	}
	w.list.Remove(e)
	delete(w.at, p)
}

// each calls f, with what closedWaiting returns, for the partitions in order
// until it returns false.
func (w *waitingList) each(f func(p *Partition, first storage.ClosedSegment, n int, bytes int64) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for e := w.list.Front(); e != nil; {
		p, next := e.Value.(*Partition), e.Next()
		first, n, bytes := p.closedWaiting()
		if n == 0 {
			w.list.Remove(e)
			delete(w.at, p)
		} else if !f(p, first, n, bytes) {
			return
		}
		e = next
	}
}

// find adds all partitions of the view that have something waiting, oldest
// first: a notice that was lost delays and never forgets a segment.
func (w *waitingList) find(v *view) {
	type found struct {
		p  *Partition
		at time.Time
	}
	var all []found
	for _, parts := range v.parts {
		for p := range led(parts) {
			if first, n, _ := p.closedWaiting(); n > 0 {
				all = append(all, found{p, first.ClosedAt})
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].at.Before(all[j].at) })
	for _, f := range all {
		w.add(f.p)
	}
}

// source is a closed local segment as the uploader reads it.
type source struct {
	*storage.SegmentReader
	// epoch is the one that this agent leads the partition with now. A segment
	// may hold batches of older ones, but it is this leader that indexes it.
	epoch int32
}

// Segment implements tiering.Source.
func (s *source) Segment() tiering.Segment {
	m := s.Index().Meta
	return tiering.Segment{
		SegmentKey: tiering.SegmentKey{TP: m.TP, Base: m.Base, Last: m.Last, Epoch: s.epoch},
		LogSize:    m.LogSize, Records: m.Records, MinTimestamp: m.MinTimestamp, MaxTimestamp: m.MaxTimestamp, LastStable: m.LastStable,
	}
}

func (b *Broker) uploaded(s tiering.LocalSegment, took time.Duration, err error) {
	if b.opts.UploadObserver == nil {
		return
	}
	name := s.TP.Topic.String()
	if t := b.TopicByID(s.TP.Topic); t != nil {
		name = t.Name
	}
	b.opts.UploadObserver(name, s.Bytes, took, err)
}

// Flushed tells the broker that a segment was closed: it can be uploaded, and
// retention may look at it.
func (b *Broker) Flushed(tp ids.TopicPartition) {
	p, err := b.Partition(tp.Topic, tp.Partition)
	if err != nil {
		return // deleted meanwhile
	}
	p.check.stir.Store(true)
	if uploads(p.topic.Load()) {
		b.waiting.add(p)
		b.uploader.Kick()
	}
}

// FindClosed looks for closed segments in all partitions: Flushed may not have
// been called for those that were closed while the broker was opened.
func (b *Broker) FindClosed() {
	b.waiting.find(b.view.Load())
	b.uploader.Kick()
}
