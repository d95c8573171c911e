package wal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Needs says what of sealed streams nobody needs any more. That something is not known, or no
// longer known, is no proof: then the answer is false.
type Needs interface {
	// Accepted reports whether a partition's acceptance under epoch, or a later one, is
	// durable, or its topic deleted for ever.
	Accepted(ctx context.Context, tp ids.TopicPartition, epoch int32) (bool, error)
	// Spare reports whether the offsets base to last are indexed in data/ now, or below the
	// durable log start, or the topic is deleted for ever.
	Spare(ctx context.Context, tp ids.TopicPartition, base, last int64) (bool, error)
}

// Swept is what a sweep of sealed streams has done.
type Swept struct {
	Objects int   `json:"objects"` // deleted
	Bytes   int64 `json:"bytes"`   // of them
	Waiting int   `json:"waiting"` // sealed streams that have objects still
}

// SweepSealed deletes the objects of sealed streams that nobody needs: of each stream in order, one
// at a time, up to the first that somebody may need. Before all heirs have accepted, nothing goes,
// as they learn from the objects where their partitions end. Seals, `sealed` and claims stay for
// ever. A stream that can't be read is left, the others go on; the first such error is returned.
func SweepSealed(ctx context.Context, b objstore.Bucket, cluster [16]byte, n Needs, log *slog.Logger) (Swept, error) {
	s := streamSweep{b: b, cluster: cluster, needs: n, log: log}
	var first error
	one := func(st *listedStream) {
		if st == nil || !st.sealed {
			return
		}
		if err := s.stream(ctx, st); err != nil && first == nil {
			first = fmt.Errorf("sweep stream %s: %w", st.inc, err)
		}
	}
	err := eachStream(ctx, b, one)
	return s.swept, errors.Join(err, first)
}

// listedStream is a stream as a list of the bucket has it.
type listedStream struct {
	inc     ids.Incarnation
	sealed  bool
	objects []info
	newest  time.Time // when the last of objects was put
}

// eachStream lists all streams and calls f with each. One with a key that this program does not know
// is left out.
func eachStream(ctx context.Context, b objstore.Reader, f func(*listedStream)) error {
	var st *listedStream
	strange, after := ids.Incarnation(""), ""
	for more := true; more; {
		var page []objstore.ObjectInfo
		err := retry(ctx, func() (err error) {
			page, more, err = b.List(ctx, Prefix, after, 1000)
			return err
		})
		if err != nil {
			return fmt.Errorf("list streams: %w", err)
		}
		for _, o := range page {
			after = o.Key
			name, rest, _ := strings.Cut(strings.TrimPrefix(o.Key, Prefix), "/")
			inc, err := ids.ParseIncarnation(name)
			if err != nil || inc == strange {
				continue
			}
			if st == nil || st.inc != inc {
				if st != nil {
					f(st)
				}
				st = &listedStream{inc: inc}
			}
			_, seq, err := ParseKey(o.Key)
			switch {
			case err == nil:
				st.objects, st.newest = append(st.objects, info{seq, o.Size, o.ETag}), o.Modified
			case rest == "sealed":
				st.sealed = true
			case !strings.HasPrefix(rest, claimDir):
				st, strange = nil, inc
			}
		}
	}
	if st != nil {
		f(st)
	}
	return ctx.Err()
}

// Listed is a stream as a list of the bucket has it.
type Listed struct {
	Incarnation ids.Incarnation
	Sealed      bool
	Objects     int
	Newest      time.Time // when its last object was put, by the store's clock
}

// ListStreams lists all streams, oldest incarnation first.
func ListStreams(ctx context.Context, b objstore.Reader) (out []Listed, err error) {
	err = eachStream(ctx, b, func(s *listedStream) {
		out = append(out, Listed{Incarnation: s.inc, Sealed: s.sealed, Objects: len(s.objects), Newest: s.newest})
	})
	return out, err
}

type streamSweep struct {
	b       objstore.Bucket
	cluster [16]byte
	needs   Needs
	log     *slog.Logger
	swept   Swept
}

// stream sweeps one sealed stream.
func (s *streamSweep) stream(ctx context.Context, st *listedStream) error {
	at, err := readSealed(ctx, s.b, st.inc)
	if err != nil {
		return err
	}
	if len(st.objects) == 1 && st.objects[0].seq == at {
		return nil // all gone
	}
	read, err := footersLeft(ctx, s.b, st.inc, st.objects)
	if err != nil {
		return err
	}
	var seal *Footer
	var data, behind []*Footer
	sizes := map[uint64]int64{}
	for i, f := range read {
		switch {
		case f == nil: // gone meanwhile
		case f.Cluster != s.cluster:
			return fmt.Errorf("%w: %s is of another cluster", contract.ErrForeign, Key(st.inc, f.Seq))
		case f.Seq == at:
			seal = f
		case f.Seal != nil: // void; it stays
		case f.Seq < at:
			data = append(data, f)
		default:
			behind = append(behind, f)
		}
		sizes[st.objects[i].seq] = st.objects[i].size
	}
	if seal == nil || seal.Seal == nil {
		return fmt.Errorf("%w: %s is said to be the seal and is none", contract.ErrDamaged, Key(st.inc, at))
	}
	if len(data)+len(behind) == 0 {
		return nil
	}
	done, err := s.data(ctx, st.inc, seal.Seal, data, sizes)
	if err == nil && done {
		for _, f := range behind { // never acknowledged: the stream ends at the seal
			if err = s.delete(ctx, st.inc, f.Seq, sizes[f.Seq]); err != nil {
				break
			}
		}
	}
	if err != nil || !done {
		s.swept.Waiting++
	}
	return err
}

// data deletes the objects before the seal as far as nobody needs them; done tells that all are gone.
func (s *streamSweep) data(ctx context.Context, inc ids.Incarnation, seal *Seal, fs []*Footer, sizes map[uint64]int64) (done bool, err error) {
	for _, h := range seal.Heirs {
		if !h.Disk.IsZero() {
			continue // the stream has nothing of it
		}
		if ok, err := s.needs.Accepted(ctx, h.TP, h.Epoch); err != nil || !ok {
			return false, err
		}
	}
	newest := newestPlaces(fs)
	for _, f := range fs {
		for i := range f.Batches {
			b := &f.Batches[i]
			if newest[place{b.TP, b.Base}] > f.Seq {
				continue // carried forward
			}
			if ok, err := s.needs.Spare(ctx, b.TP, b.Base, b.Last); err != nil || !ok {
				return false, err
			}
		}
		if err := s.delete(ctx, inc, f.Seq, sizes[f.Seq]); err != nil {
			return false, err
		}
	}
	return true, nil
}

type place struct {
	tp   ids.TopicPartition
	base int64
}

// newestPlaces tells which object is the newest one that has a batch.
func newestPlaces(fs []*Footer) map[place]uint64 {
	out := map[place]uint64{}
	for _, f := range fs {
		for i := range f.Batches {
			b := &f.Batches[i]
			out[place{b.TP, b.Base}] = max(out[place{b.TP, b.Base}], f.Seq)
		}
	}
	return out
}

func (s *streamSweep) delete(ctx context.Context, inc ids.Incarnation, seq uint64, size int64) error {
	key := Key(inc, seq)
	if err := retry(ctx, func() error { return s.b.Delete(ctx, key) }); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	s.swept.Objects++
	s.swept.Bytes += size
	return nil
}
