package storage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// A spill file holds the batches of quiet partitions that would otherwise keep
// the ring from being trimmed: those that do not fill a block of their segment
// yet. It is written whole, synced and renamed, before the ring is trimmed. It
// goes when every batch in it lies in a synced segment.
//
//	 0  magic "CIRROSPL"  8
//	 8  version           u32 little-endian
//	12  entries           u32
//	16  length            u64  of the whole file
//	24  reserved          4
//	28  crc of [0,28)     u32  CRC32C
//	32  entries as in a stream (wal.EncodeEntry)
const (
	spillMagic   = "CIRROSPL"
	spillVersion = 1
	spillHeader  = 32
	// maxSpill bounds one spill file.
	maxSpill = 64 << 20
	// minSegmentFlush is the least that is worth a segment write of its own
	// when the ring must be trimmed; less goes to the common spill file.
	minSegmentFlush = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// spillFile is one file; it goes with its last reference.
type spillFile struct {
	path string
	seq  uint64
	size int64
	refs atomic.Int64
}

// spillRef is a batch in a spill file.
type spillRef struct {
	file *spillFile
	pos  int64 // of the entry
}

func (f *spillFile) unref(s *Store) {
	if f.refs.Add(-1) == 0 {
		s.dropSpill(f)
	}
}

func spillName(seq uint64) string { return fmt.Sprintf("spill-%020d.wal", seq) }

func parseSpillName(name string) (uint64, bool) {
	n, ok := strings.CutPrefix(name, "spill-")
	n, ok2 := strings.CutSuffix(n, ".wal")
	if !ok || !ok2 || len(n) != 20 {
		return 0, false
	}
	seq, err := strconv.ParseUint(n, 10, 64)
	return seq, err == nil
}

// encodeSpill lays out the records' entries and returns their positions.
func encodeSpill(records []*record, data [][]byte) (b []byte, pos []int64) {
	size := spillHeader
	for _, d := range data {
		size += wal.EntrySize(len(d))
	}
	b = make([]byte, size)
	copy(b, spillMagic)
	binary.LittleEndian.PutUint32(b[8:], spillVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(records)))
	binary.LittleEndian.PutUint64(b[16:], uint64(size))
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	at := spillHeader
	for i, r := range records {
		pos = append(pos, int64(at))
		copy(b[at+wal.EntryHeader:], data[i])
		wal.EncodeEntry(b[at:], &r.Entry, len(data[i]))
		at += wal.EntrySize(len(data[i]))
	}
	return b, pos
}

// decodeSpill calls fn for every entry of a spill file. The file was synced
// before it got its name, so anything wrong in it is damage.
func decodeSpill(b []byte, fn func(e *wal.Entry, pos int64) error) error {
	if len(b) < spillHeader || string(b[:8]) != spillMagic {
		return fmt.Errorf("%w: spill file has no header", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != spillVersion {
		return fmt.Errorf("%w: spill file version %d, this program knows %d", wal.ErrVersion, v, spillVersion)
	}
	if crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) || binary.LittleEndian.Uint64(b[16:]) != uint64(len(b)) {
		return fmt.Errorf("%w: spill file header or length", ErrDamaged)
	}
	at := spillHeader
	for i := range binary.LittleEndian.Uint32(b[12:]) {
		var e wal.Entry
		n, err := wal.DecodeEntry(b[at:], &e)
		if err == nil {
			err = checkBatch(&e)
		}
		if err != nil {
			return fmt.Errorf("%w: spill entry %d at %d: %w", ErrDamaged, i, at, err)
		}
		if err := fn(&e, int64(at)); err != nil {
			return err
		}
		at += n
	}
	if at != len(b) {
		return fmt.Errorf("%w: %d bytes behind the last spill entry", ErrDamaged, len(b)-at)
	}
	return nil
}

func checkBatch(e *wal.Entry) error {
	h, err := batch.Check(e.Data)
	if err != nil {
		return err
	}
	if e.Kind != wal.KindBatch || h.Size() != len(e.Data) || h.BaseOffset != e.Base || h.LastOffset() != e.Last {
		return fmt.Errorf("%w: entry and batch disagree", batch.ErrCorrupt)
	}
	return nil
}

// spill makes the records safe in a new spill file. The caller holds the
// flushMu of their logs, or is the recovery.
func (s *Store) spill(records []*record) error {
	for len(records) > 0 {
		n, size := 0, spillHeader
		for n < len(records) && (n == 0 || size+wal.EntrySize(int(records[n].size)) <= maxSpill) {
			size += wal.EntrySize(int(records[n].size))
			n++
		}
		if err := s.spillFileOf(records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

func (s *Store) spillFileOf(records []*record) error {
	data := make([][]byte, len(records))
	open := openSpills{}
	defer open.close()
	for i, r := range records {
		b, err := s.bytesOf(r, open)
		if err != nil {
			return err
		}
		data[i] = b
	}
	b, pos := encodeSpill(records, data)
	f := &spillFile{seq: s.spillSeq.Add(1), size: int64(len(b))}
	f.path = filepath.Join(s.opts.Dir, "wal", spillName(f.seq))
	if err := writeFile(s.opts.FS, f.path, b); err != nil {
		return s.diskError(fmt.Errorf("write spill file: %w", err))
	}
	s.diskUsed.Add(f.size)
	f.refs.Store(int64(len(records)))
	s.mu.Lock()
	s.spills[f.seq] = f
	s.mu.Unlock()
	for i, r := range records {
		r.log.mu.Lock()
		old := r.spill
		r.spill = &spillRef{file: f, pos: pos[i]}
		r.log.mu.Unlock()
		if old != nil {
			old.file.unref(s)
		}
	}
	return nil
}

func (s *Store) dropSpill(f *spillFile) {
	s.mu.Lock()
	delete(s.spills, f.seq)
	s.mu.Unlock()
	s.diskUsed.Add(-f.size)
	if err := s.opts.FS.Remove(f.path); err != nil {
		s.opts.Logger.Warn("remove spill file", "path", f.path, "err", err)
	}
}

// bytesOf returns the record's batch: from memory, else from its spill file.
// The caller makes sure that the record keeps its place meanwhile.
func (s *Store) bytesOf(r *record, open openSpills) ([]byte, error) {
	if r.inMemory() {
		return r.Data, nil
	}
	if r.spill == nil {
		return nil, fmt.Errorf("%w: batch %d of %s is nowhere", ErrDamaged, r.Base, r.TP)
	}
	return s.readSpill(open, r.spill, r.Base, int(r.size))
}

// openSpills are the spill files that one caller has open, because it reads
// many batches of them.
type openSpills map[*spillFile]vfs.File

func (o openSpills) close() {
	for _, f := range o {
		f.Close()
	}
}

// readSpill reads and checks one batch of a spill file, which it leaves open.
func (s *Store) readSpill(open openSpills, ref *spillRef, base int64, size int) ([]byte, error) {
	f := open[ref.file]
	if f == nil {
		var err error
		if f, err = s.opts.FS.Open(ref.file.path, vfs.ReadOnly); err != nil {
			return nil, fmt.Errorf("open spill file: %w", err)
		}
		open[ref.file] = f
	}
	b := make([]byte, wal.EntryHeader+size)
	if n, err := f.ReadAt(b, ref.pos); n < len(b) {
		return nil, fmt.Errorf("read spill file: %w", err)
	}
	var e wal.Entry
	if _, err := wal.DecodeEntry(b, &e); err != nil {
		return nil, fmt.Errorf("%w: spill file %s at %d: %w", ErrDamaged, ref.file.path, ref.pos, err)
	}
	if err := checkBatch(&e); err != nil || e.Base != base {
		return nil, fmt.Errorf("%w: spill file %s at %d: %w", ErrDamaged, ref.file.path, ref.pos, err)
	}
	return e.Data, nil
}
