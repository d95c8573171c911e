package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Prefix is where the streams lie in the bucket.
const Prefix = "wal/"

func streamPrefix(inc ids.Incarnation) string { return Prefix + string(inc) + "/" }

// Key is the key of a stream's object of number seq.
func Key(inc ids.Incarnation, seq uint64) string {
	return fmt.Sprintf("%s%020d", streamPrefix(inc), seq)
}

func sealedKey(inc ids.Incarnation) string { return streamPrefix(inc) + "sealed" }

// ParseKey parses a key of Key.
func ParseKey(key string) (inc ids.Incarnation, seq uint64, err error) {
	name, num, ok := strings.Cut(strings.TrimPrefix(key, Prefix), "/")
	if ok && strings.HasPrefix(key, Prefix) {
		if inc, err = ids.ParseIncarnation(name); err == nil {
			seq, err = strconv.ParseUint(num, 10, 64)
		}
	}
	if !ok || err != nil || Key(inc, seq) != key {
		return "", 0, fmt.Errorf("%w: key %q: want %s<incarnation>/ and 20 digits", contract.ErrDamaged, key, Prefix)
	}
	return inc, seq, nil
}

// body is an object of several pieces of memory; an objstore.Body.
type body struct {
	pieces [][]byte
	ends   []int64 // where each ends
	at     int64
}

var _ objstore.Body = (*body)(nil)

func (b *body) add(p []byte) {
	if len(p) > 0 {
		b.pieces = append(b.pieces, p)
		b.ends = append(b.ends, b.Size()+int64(len(p)))
	}
}

// Size implements objstore.Body.
func (b *body) Size() int64 {
	if n := len(b.ends); n > 0 {
		return b.ends[n-1]
	}
	return 0
}

// ReadAt implements io.ReaderAt.
func (b *body) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	i := sort.Search(len(b.ends), func(i int) bool { return b.ends[i] > off })
	for ; i < len(b.pieces) && n < len(p); i++ {
		from := off + int64(n) - (b.ends[i] - int64(len(b.pieces[i])))
		n += copy(p[n:], b.pieces[i][from:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadAt(p, b.at)
	b.at += int64(n)
	if n > 0 {
		return n, nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (b *body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.Size()
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	b.at = offset
	return offset, nil
}

// info is an object of a stream as a list has it.
type info struct {
	seq  uint64
	size int64
	etag string
}

// list returns the objects of a stream in order, and whether it is marked as sealed.
func list(ctx context.Context, b objstore.Reader, inc ids.Incarnation) (out []info, sealed bool, err error) {
	after := ""
	for more := true; more; {
		var objects []objstore.ObjectInfo
		err := retry(ctx, func() (err error) {
			objects, more, err = b.List(ctx, streamPrefix(inc), after, 1000)
			return err
		})
		if err != nil {
			return nil, false, fmt.Errorf("list stream %s: %w", inc, err)
		}
		for _, o := range objects {
			after = o.Key
			if o.Key == sealedKey(inc) {
				sealed = true
				continue
			}
			if strings.HasPrefix(o.Key, streamPrefix(inc)+claimDir) {
				continue
			}
			_, seq, err := ParseKey(o.Key)
			if err != nil {
				return nil, false, err
			}
			out = append(out, info{seq, o.Size, o.ETag})
		}
	}
	return out, sealed, nil
}

// tailRead is how much of an object's end is read to find its footer.
const tailRead = 64 << 10

// ReadFooter reads the footer of an object of size bytes; size < 0: not known.
// objstore.ErrNotFound: there is none; it may have been trimmed.
func ReadFooter(ctx context.Context, b objstore.Reader, inc ids.Incarnation, seq uint64, size int64) (*Footer, error) {
	key := Key(inc, seq)
	if size < 0 {
		err := retry(ctx, func() error {
			o, err := b.Head(ctx, key)
			size = o.Size
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", key, err)
		}
	}
	tail, err := readTail(ctx, b, key, max(size-tailRead, 0), size)
	if errors.Is(err, errOther) || errors.Is(err, objstore.ErrRange) {
		err = fmt.Errorf("%w: %w", objstore.ErrNotFound, err) // trimmed, and a seal in its place
	}
	if err != nil {
		return nil, err
	}
	n, err := footerLen(tail)
	if err == nil && n+trailerSize > len(tail) && int64(n+trailerSize) <= size {
		tail, err = readTail(ctx, b, key, size-int64(n+trailerSize), size)
	}
	var f *Footer
	if err == nil {
		f, err = decodeFooter(tail)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if f.Stream != inc || f.Seq != seq {
		return nil, fmt.Errorf("%s: %w: it says that it is %s", key, contract.ErrDamaged, Key(f.Stream, f.Seq))
	}
	return f, nil
}

// errOther: the object does not have the size that a list has told.
var errOther = errors.New("object of another size")

// readTail reads the bytes of an object of size bytes from from on.
func readTail(ctx context.Context, b objstore.Reader, key string, from, size int64) ([]byte, error) {
	return readObject(ctx, b, key, from, size, size)
}

func readRange(ctx context.Context, b objstore.Reader, key string, from, to int64) ([]byte, error) {
	return readObject(ctx, b, key, from, to, -1)
}

// readObject reads the bytes [from, to) of an object, which has size bytes unless that is negative.
func readObject(ctx context.Context, b objstore.Reader, key string, from, to, size int64) ([]byte, error) {
	out := make([]byte, to-from)
	err := retry(ctx, func() error {
		r, info, err := b.Get(ctx, key, from, to-from)
		if err != nil {
			return err
		}
		if size >= 0 && info.Size != size {
			return errors.Join(fmt.Errorf("%w: %d bytes, not %d", errOther, info.Size, size), r.Close())
		}
		_, err = io.ReadFull(r, out)
		return errors.Join(err, r.Close())
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return out, nil
}

// retry does what a busy store refused again, with growing pauses, a few times.
func retry(ctx context.Context, do func() error) error {
	return objstore.Retry{}.Do(ctx, do)
}

// readers is how many footers are read at the same time.
const readers = 64

// footers reads the footers of the objects, in parallel.
func footers(ctx context.Context, b objstore.Reader, inc ids.Incarnation, objects []info) ([]*Footer, error) {
	out := make([]*Footer, len(objects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, o := range objects {
		g.Go(func() (err error) {
			out[i], err = ReadFooter(ctx, b, inc, o.seq, o.size)
			return err
		})
	}
	return out, g.Wait()
}

// ReadBatches reads batches of one object that lie next to each other, and
// checks them against the footer's entries and Kafka's checksums. The result is
// their bytes, one behind the other.
func ReadBatches(ctx context.Context, b objstore.Reader, inc ids.Incarnation, seq uint64, batches []Batch) ([]byte, error) {
	if len(batches) == 0 {
		return nil, nil
	}
	first, last := batches[0], batches[len(batches)-1]
	span, err := ReadSpan(ctx, b, inc, seq, first.Pos, last.Pos+last.Length)
	if err != nil {
		return nil, err
	}
	return span.Batches(batches)
}

// Span is a piece of an object's data that is in memory.
type Span struct {
	key  string
	pos  int64
	data []byte
}

// ReadSpan reads the bytes from position from up to, without, to of an object. Several
// partitions may have batches there.
func ReadSpan(ctx context.Context, b objstore.Reader, inc ids.Incarnation, seq uint64, from, to int64) (*Span, error) {
	data, err := readRange(ctx, b, Key(inc, seq), from, to)
	if err != nil {
		return nil, err
	}
	return &Span{Key(inc, seq), from, data}, nil
}

// Batches returns batches that lie next to each other in the span, whose memory it shares, and compares
// each with its entry.
func (s *Span) Batches(batches []Batch) ([]byte, error) {
	first, last := batches[0], batches[len(batches)-1]
	if first.Pos < s.pos || last.Pos+last.Length > s.pos+int64(len(s.data)) {
		return nil, fmt.Errorf("%s: positions %d to %d are not in what was read", s.key, first.Pos, last.Pos+last.Length)
	}
	data := s.data[first.Pos-s.pos : last.Pos+last.Length-s.pos : last.Pos+last.Length-s.pos]
	rest := data
	for i := range batches {
		e := &batches[i]
		if int64(len(rest)) < e.Length {
			return nil, fmt.Errorf("%w: %s: batches do not lie next to each other", contract.ErrDamaged, s.key)
		}
		if err := e.check(rest[:e.Length]); err != nil {
			return nil, fmt.Errorf("%w: %s at %d: %w", contract.ErrDamaged, s.key, e.Pos, err)
		}
		rest = rest[e.Length:]
	}
	return data, nil
}

// check compares a batch's bytes with its entry.
func (e *Batch) check(b []byte) error {
	h, err := batch.Check(b)
	if err != nil {
		return err
	}
	want := *e
	want.Pos = 0
	if got := batchOf(e.TP, &h); got != want {
		return fmt.Errorf("batch is %+v, the footer says %+v", got, want)
	}
	return nil
}
