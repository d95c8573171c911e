package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"slices"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
)

const (
	magic         = "CIRROWAL"
	formatVersion = 1
	// diskVersion is that of objects that name disks; others have formatVersion.
	diskVersion = 2
	headerSize  = 16
	trailerSize = 24

	kindData = 1
	kindSeal = 2
)

// maxFooter bounds a footer, in bytes: a seal of a million partitions fits.
const maxFooter = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what every object begins with.
func header(kind byte, version uint16) []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[8:], version)
	b[10] = kind
	return b
}

func (f *Footer) kind() byte {
	if f.Seal != nil {
		return kindSeal
	}
	return kindData
}

// header returns that of the footer's object.
func (f *Footer) header() []byte { return header(f.kind(), f.version()) }

// version is the least format that can say what the footer says.
func (f *Footer) version() uint16 {
	held := func(h []Held) bool { return slices.ContainsFunc(h, func(h Held) bool { return !h.Disk.IsZero() }) }
	switch {
	case f.Seal != nil && slices.ContainsFunc(f.Seal.Heirs, func(h Heir) bool { return !h.Disk.IsZero() }),
		slices.ContainsFunc(f.Acceptances, func(a Acceptance) bool { return !a.Disk.IsZero() }),
		f.Checkpoint != nil && held(f.Checkpoint.Held):
		return diskVersion
	}
	return formatVersion
}

// encode returns the bytes of footer and trailer.
func (f *Footer) encode() []byte {
	w := writer{topics: map[ids.TopicID]int{}, version: f.version()}
	w.b = append(w.b, f.Cluster[:]...)
	w.str(string(f.Stream))
	w.u(f.Seq)
	w.b = append(w.b, f.Nonce[:]...)
	w.i(f.CreatedMs)
	if f.Seal != nil {
		w.seal(f.Seal)
	} else {
		w.data(f)
	}
	n := len(w.b)
	t := make([]byte, trailerSize)
	binary.LittleEndian.PutUint32(t, uint32(n))
	binary.LittleEndian.PutUint16(t[4:], w.version)
	t[6] = f.kind()
	binary.LittleEndian.PutUint32(t[8:], footerCRC(w.b, t))
	copy(t[16:], magic)
	return append(w.b, t...)
}

// footerCRC is over the header, the footer and the first 8 bytes of the trailer. It
// is masked as in LevelDB: the CRC of bytes with their own CRC behind them is the same
// for all, so that two seals would have the same checksum as objects, by which
// a create-only put tells its own from somebody else's.
func footerCRC(footer, trailer []byte) uint32 {
	crc := crc32.Checksum(header(trailer[6], binary.LittleEndian.Uint16(trailer[4:])), castagnoli)
	crc = crc32.Update(crc, castagnoli, footer)
	crc = crc32.Update(crc, castagnoli, trailer[:8])
	return bits.RotateLeft32(crc, -15) + crcMask
}

const crcMask = 0xa282ead8

// footerLen reads the trailer, the last bytes of an object.
func footerLen(trailer []byte) (int, error) {
	if len(trailer) < trailerSize {
		return 0, fmt.Errorf("%w: object of %d bytes has no trailer", contract.ErrDamaged, len(trailer))
	}
	t := trailer[len(trailer)-trailerSize:]
	if string(t[16:]) != magic {
		return 0, fmt.Errorf("%w: no object of a stream: bad magic at its end", contract.ErrDamaged)
	}
	if v := binary.LittleEndian.Uint16(t[4:]); v != formatVersion && v != diskVersion {
		return 0, fmt.Errorf("%w %d, this program knows %d and %d", contract.ErrVersion, v, formatVersion, diskVersion)
	}
	n := binary.LittleEndian.Uint32(t)
	if n > maxFooter {
		return 0, fmt.Errorf("%w: footer of %d bytes, at most %d", contract.ErrDamaged, n, maxFooter)
	}
	return int(n), nil
}

// decodeFooter parses footer and trailer, b's last bytes.
func decodeFooter(b []byte) (*Footer, error) {
	n, err := footerLen(b)
	if err != nil {
		return nil, err
	}
	if n+trailerSize > len(b) {
		return nil, fmt.Errorf("%w: footer of %d bytes in an object of %d", contract.ErrDamaged, n, len(b))
	}
	t := b[len(b)-trailerSize:]
	body := b[len(b)-trailerSize-n : len(b)-trailerSize]
	kind := t[6]
	if kind != kindData && kind != kindSeal || binary.LittleEndian.Uint32(t[12:]) != 0 || footerCRC(body, t) != binary.LittleEndian.Uint32(t[8:]) {
		return nil, fmt.Errorf("%w: checksum of the footer", contract.ErrDamaged)
	}
	f := &Footer{}
	r := &reader{b: body, version: binary.LittleEndian.Uint16(t[4:])}
	copy(f.Cluster[:], r.raw(16))
	f.Stream = r.incarnation()
	f.Seq = r.u()
	copy(f.Nonce[:], r.raw(16))
	f.CreatedMs = r.i()
	if kind == kindSeal {
		f.Seal = r.seal()
	} else {
		r.data(f)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes behind its end", len(r.b))
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: footer: %w", contract.ErrDamaged, r.err)
	}
	return f, nil
}

// writer appends values: integers as varints, topic ids once.
type writer struct {
	b       []byte
	topics  map[ids.TopicID]int
	version uint16
}

func (w *writer) u(v uint64)   { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) i(v int64)    { w.b = binary.AppendVarint(w.b, v) }
func (w *writer) n(v int)      { w.u(uint64(v)) }
func (w *writer) str(s string) { w.n(len(s)); w.b = append(w.b, s...) }

// tp writes a topic as its place among those of the footer, at its first use
// followed by its id.
func (w *writer) tp(tp ids.TopicPartition) {
	at, ok := w.topics[tp.Topic]
	if !ok {
		at = len(w.topics)
		w.topics[tp.Topic] = at
	}
	w.n(at)
	if !ok {
		w.b = append(w.b, tp.Topic[:]...)
	}
	w.u(uint64(tp.Partition))
}

func (w *writer) data(f *Footer) {
	w.u(f.Pos)
	w.u(f.End)
	w.u(f.CheckpointAt)
	w.n(len(f.Batches))
	for i := range f.Batches {
		w.batch(&f.Batches[i])
	}
	w.n(len(f.LogStarts))
	for _, l := range f.LogStarts {
		w.tp(l.TP)
		w.i(int64(l.Epoch))
		w.i(l.Offset)
	}
	w.n(len(f.Acceptances))
	for _, a := range f.Acceptances {
		w.held(Held(a))
	}
	w.releases(f.Releases)
	if f.Checkpoint == nil {
		w.n(0)
		return
	}
	w.n(1)
	w.n(len(f.Checkpoint.Held))
	for _, h := range f.Checkpoint.Held {
		w.held(h)
	}
	w.releases(f.Checkpoint.Released)
}

// batch writes all but the position: the batches lie one behind the other.
func (w *writer) batch(b *Batch) {
	w.tp(b.TP)
	w.i(int64(b.Epoch))
	w.i(b.Base)
	w.u(uint64(b.Last - b.Base))
	w.u(uint64(b.Length))
	w.i(b.MaxTimestamp)
	w.i(b.ProducerID)
	if b.ProducerID >= 0 {
		w.i(int64(b.ProducerEpoch))
		w.i(int64(b.BaseSequence))
	}
	w.i(int64(b.Attributes))
}

func (w *writer) held(h Held) {
	w.tp(h.TP)
	w.i(int64(h.Epoch))
	w.i(h.LogStart)
	w.i(h.End)
	w.str(h.Giver)
	w.older(h.Older)
	if w.version >= diskVersion {
		w.disk(h.Disk)
	}
}

// disk writes 0 for none, or 1 and the id.
func (w *writer) disk(d ids.DiskID) {
	if d.IsZero() {
		w.n(0)
		return
	}
	w.n(1)
	w.b = append(w.b, d[:]...)
}

func (w *writer) older(rs []OlderRange) {
	w.n(len(rs))
	for _, o := range rs {
		w.str(string(o.Stream))
		w.u(o.From)
		w.u(o.To)
		w.i(o.Base)
		w.i(o.End)
	}
}

func (w *writer) releases(rs []Release) {
	w.n(len(rs))
	for _, r := range rs {
		w.tp(r.TP)
		w.i(int64(r.Epoch))
		w.i(r.LogStart)
		w.i(r.End)
		w.str(string(r.To))
		w.older(r.Older)
	}
}

func (w *writer) seal(s *Seal) {
	w.str(string(s.By))
	w.n(len(s.Heirs))
	for _, h := range s.Heirs {
		w.tp(h.TP)
		w.i(int64(h.Epoch))
		w.str(string(h.To))
		flag := 0
		if h.Released {
			flag = 1
		}
		w.n(flag)
		w.str(h.Giver)
		if w.version >= diskVersion {
			w.disk(h.Disk)
			if !h.Disk.IsZero() {
				w.i(h.End)
			}
		}
	}
}

// reader is the counterpart of writer. After an error everything is zero.
type reader struct {
	b       []byte
	topics  []ids.TopicID
	version uint16
	err     error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.b = nil
}

var errCut = errors.New("cut short")

func (r *reader) u() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("%w", errCut)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) i() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("%w", errCut)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// narrow reads a number that fits into so many bits.
func (r *reader) narrow(bits int) int64 {
	v := r.i()
	if v<<(64-bits)>>(64-bits) != v {
		r.fail("%d is no %d-bit number", v, bits)
		return 0
	}
	return v
}

func (r *reader) i32() int32 { return int32(r.narrow(32)) }
func (r *reader) i16() int16 { return int16(r.narrow(16)) }

// count reads how many items of at least size bytes follow.
func (r *reader) count(size int) int {
	n := r.u()
	if n > uint64(len(r.b)/size) {
		r.fail("%d items in %d bytes", n, len(r.b))
		return 0
	}
	return int(n)
}

func (r *reader) raw(n int) []byte {
	if n > len(r.b) {
		r.fail("%w", errCut)
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) str() string { return string(r.raw(r.count(1))) }

func (r *reader) incarnation() ids.Incarnation {
	s := r.str()
	if r.err != nil {
		return ""
	}
	inc, err := ids.ParseIncarnation(s)
	if err != nil {
		r.fail("%w", err)
	}
	return inc
}

// heir reads an incarnation, or "": a disk keeps the partition.
func (r *reader) heir() ids.Incarnation {
	if len(r.b) > 0 && r.b[0] == 0 {
		r.b = r.b[1:]
		return ""
	}
	return r.incarnation()
}

func (r *reader) tp() (tp ids.TopicPartition) {
	at := r.u()
	switch {
	case at < uint64(len(r.topics)):
		tp.Topic = r.topics[at]
	case at == uint64(len(r.topics)):
		copy(tp.Topic[:], r.raw(len(tp.Topic)))
		r.topics = append(r.topics, tp.Topic)
	default:
		r.fail("topic %d of %d", at, len(r.topics))
	}
	p := r.u()
	if p > math.MaxInt32 {
		r.fail("partition %d", p)
		return tp
	}
	tp.Partition = int32(p)
	return tp
}

func (r *reader) data(f *Footer) {
	f.Pos, f.End, f.CheckpointAt = r.u(), r.u(), r.u()
	pos := int64(headerSize)
	if n := r.count(9); n > 0 {
		f.Batches = make([]Batch, n)
		for i := range f.Batches {
			pos = r.batch(&f.Batches[i], pos)
		}
	}
	for range r.count(4) {
		f.LogStarts = append(f.LogStarts, LogStart{TP: r.tp(), Epoch: r.i32(), Offset: r.i()})
	}
	for range r.count(7) {
		f.Acceptances = append(f.Acceptances, Acceptance(r.held()))
	}
	f.Releases = r.releases()
	switch r.u() {
	case 0:
		return
	case 1:
	default:
		r.fail("unknown kind of checkpoint")
		return
	}
	f.Checkpoint = &Checkpoint{}
	for range r.count(7) {
		f.Checkpoint.Held = append(f.Checkpoint.Held, r.held())
	}
	f.Checkpoint.Released = r.releases()
}

func (r *reader) batch(b *Batch, pos int64) (end int64) {
	b.TP, b.Epoch, b.Base = r.tp(), r.i32(), r.i()
	n, length := r.u(), r.u()
	if b.Base < 0 || n > math.MaxInt32 || b.Base > math.MaxInt64-int64(n) || length > math.MaxInt32 {
		r.fail("batch of %d bytes with %d more offsets at %d", length, n, b.Base)
		return pos
	}
	b.Last, b.Pos, b.Length = b.Base+int64(n), pos, int64(length)
	b.MaxTimestamp, b.ProducerID = r.i(), r.i()
	b.ProducerEpoch, b.BaseSequence = -1, -1
	if b.ProducerID >= 0 {
		b.ProducerEpoch, b.BaseSequence = r.i16(), r.i32()
	}
	b.Attributes = r.i16()
	return pos + b.Length
}

func (r *reader) held() Held {
	h := Held{TP: r.tp(), Epoch: r.i32(), LogStart: r.i(), End: r.i(), Giver: r.str(), Older: r.older()}
	if r.version >= diskVersion {
		h.Disk = r.disk()
	}
	return h
}

func (r *reader) disk() (d ids.DiskID) {
	switch r.u() {
	case 0:
		return d
	case 1:
		copy(d[:], r.raw(len(d)))
		if r.err == nil && d.IsZero() {
			r.fail("disk id of zeros")
		}
	default:
		r.fail("unknown flags of a disk")
	}
	return d
}

func (r *reader) older() (out []OlderRange) {
	for range r.count(5) {
		out = append(out, OlderRange{Stream: r.incarnation(), From: r.u(), To: r.u(), Base: r.i(), End: r.i()})
	}
	return out
}

func (r *reader) releases() (out []Release) {
	for range r.count(7) {
		out = append(out, Release{TP: r.tp(), Epoch: r.i32(), LogStart: r.i(), End: r.i(), To: r.incarnation(), Older: r.older()})
	}
	return out
}

func (r *reader) seal() *Seal {
	s := &Seal{By: r.incarnation()}
	for range r.count(6) {
		h := Heir{TP: r.tp(), Epoch: r.i32(), To: r.heir()}
		switch r.u() {
		case 0:
		case 1:
			h.Released = true
		default:
			r.fail("unknown flags of an heir")
		}
		h.Giver = r.str()
		if r.version >= diskVersion {
			if h.Disk = r.disk(); !h.Disk.IsZero() {
				h.End = r.i()
			}
		}
		if (h.To == "") != !h.Disk.IsZero() {
			r.fail("an heir and a disk that keeps the partition, or neither")
		}
		s.Heirs = append(s.Heirs, h)
	}
	return s
}
