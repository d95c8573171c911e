package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/waltest"
	"github.com/cirrolog/cirrolog/tiering/objstore"
	"github.com/cirrolog/cirrolog/tiering/objstore/dir"
)

// lineage is what the suite takes for one stream: that of a new incarnation, and
// those of all before it, which are sealed when it is opened. An object of the
// bucket has the trim position, as in a cluster the segment index says what is tiered.
type lineage struct {
	*Stream
	bucket  objstore.Bucket
	old     []oldStream
	base    contract.Pos // where the new stream begins
	trimmed contract.Pos
}

const trimKey = "trimmed"

type oldStream struct {
	inc  ids.Incarnation
	fs   []*Footer
	base contract.Pos
}

func openLineage(c waltest.Config) (contract.Stream, error) {
	b, err := dir.New(c.FS, "bucket")
	if err != nil {
		return nil, err
	}
	return newLineage(b, c)
}

func newLineage(b objstore.Bucket, c waltest.Config) (contract.Stream, error) {
	ctx, me := context.Background(), ids.NewIncarnation()
	streams, err := ListStreams(ctx, b)
	if err != nil {
		return nil, err
	}
	l := &lineage{bucket: b}
	if v, err := readRange(ctx, b, trimKey, 0, 8); err == nil {
		l.trimmed = contract.Pos(binary.LittleEndian.Uint64(v))
	} else if !errors.Is(err, objstore.ErrNotFound) {
		return nil, err
	}
	for _, st := range streams {
		inc := st.Incarnation
		if _, err := SealStream(ctx, b, c.DiskID, inc, me, func(*State) []Heir { return nil }); err != nil {
			return nil, err
		}
		s := sealer{b: b, cluster: c.DiskID, dead: inc}
		objects, _, err := list(ctx, b, inc)
		if err != nil {
			return nil, err
		}
		at, err := readSealed(ctx, b, inc)
		if err != nil {
			return nil, err
		}
		fs, _, err := s.walk(ctx, objects, at, true)
		if err != nil {
			return nil, err
		}
		l.old = append(l.old, oldStream{inc, fs, l.base})
		if len(fs) > 0 {
			l.base += contract.Pos(fs[len(fs)-1].End)
		}
	}
	o := Options{Bucket: b, Cluster: c.DiskID, Incarnation: me, Pool: c.Pool, Announce: c.Announce, OnFull: c.OnFull,
		Capacity: c.Size, Linger: time.Nanosecond, MaxAppend: 16 << 20, CheckpointEvery: 5}
	if l.Stream, err = Open(ctx, o); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *lineage) Append(ctx context.Context, entries ...*contract.Entry) error {
	err := l.Stream.Append(ctx, entries...)
	if err == nil {
		for _, e := range entries {
			e.Pos += l.base
		}
	}
	return err
}

func (l *lineage) Replay(fn func(*contract.Entry) error) error {
	for _, o := range l.old {
		for _, f := range o.fs {
			if o.base+contract.Pos(f.End) <= l.trimmed {
				continue
			}
			for _, b := range f.Batches {
				data, err := ReadBatches(context.Background(), l.bucket, o.inc, f.Seq, []Batch{b})
				if err != nil {
					return err
				}
				e := &contract.Entry{TP: b.TP, Kind: contract.KindBatch, Epoch: b.Epoch, Base: b.Base, Last: b.Last, Data: data, Pos: o.base + contract.Pos(f.Pos)}
				if err := fn(e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (l *lineage) Trim(to contract.Pos) error {
	if err := l.Stream.Trim(0); err != nil { // closed, or poisoned
		return err
	}
	border := contract.Pos(0) // the last one of a commit that is not behind to
	for _, o := range l.old {
		for _, f := range o.fs {
			if end := o.base + contract.Pos(f.End); end <= to {
				border = end
			}
		}
	}
	if to >= l.base {
		border = l.base
	}
	if border > l.trimmed {
		if err := l.trimOld(border); err != nil {
			return err
		}
	}
	return l.Stream.Trim(max(to, l.base) - l.base)
}

func (l *lineage) trimOld(to contract.Pos) error {
	l.trimmed = to
	v := binary.LittleEndian.AppendUint64(nil, uint64(to))
	if _, err := l.bucket.Put(context.Background(), trimKey, bytes.NewReader(v), objstore.PutOptions{}); err != nil {
		return err
	}
	for i := range l.old {
		o := &l.old[i]
		for len(o.fs) > 1 && o.base+contract.Pos(o.fs[0].End) <= to && o.fs[0].Seq < o.fs[len(o.fs)-1].CheckpointAt {
			if err := l.bucket.Delete(context.Background(), Key(o.inc, o.fs[0].Seq)); err != nil {
				return err
			}
			o.fs = o.fs[1:]
		}
	}
	return nil
}

func (l *lineage) State() contract.State {
	st := l.Stream.State()
	if st.Trimmed += l.base; l.trimmed < l.base {
		st.Trimmed = l.trimmed
	}
	st.Durable += l.base
	st.End += l.base
	return st
}

func TestStream(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	waltest.Run(t, openLineage)
}
