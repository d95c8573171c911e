package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/storage/wal/ring"
)

// What a local file is, by its first 8 bytes. Segments begin with an offset.
const (
	ringMagic  = "CIRRORNG"
	spillMagic = "CIRROSPL"
)

// walKind tells write-ahead ring and spill file from segments: "" is neither.
func walKind(s *segmentBytes) string {
	b := make([]byte, 8)
	if _, err := s.ReadAt(b, 0); err != nil {
		return ""
	}
	switch string(b) {
	case ringMagic:
		return "wal ring"
	case spillMagic:
		return "spill file"
	}
	return ""
}

// scanWAL calls fn for the entries of a ring or spill file and counts them.
func scanWAL(kind, name string, fn func(e *wal.Entry, pos int64) error) error {
	if kind == "spill file" {
		_, err := storage.ScanSpill(vfs.OS(), name, fn)
		return err
	}
	_, err := ring.Scan(vfs.OS(), name, func(e *wal.Entry) error { return fn(e, int64(e.Pos)) })
	return err
}

// dumpWAL prints the entries of a ring or spill file: the partition, and the
// batch as segment dump prints it.
func dumpWAL(w io.Writer, kind, name string) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "Dumping %s\n", name)
	err := scanWAL(kind, name, func(e *wal.Entry, pos int64) error {
		h, err := batch.Parse(e.Data)
		if e.Kind != wal.KindBatch || err != nil {
			_, err := fmt.Fprintf(out, "%s kind: %d position: %d size: %d\n", e.TP, e.Kind, pos, len(e.Data))
			return err
		}
		fmt.Fprintf(out, "%s ", e.TP)
		return segment.DumpBatch(out, &h, pos, true)
	})
	if err != nil {
		fmt.Fprintf(out, "damaged: %v\n", err)
	}
	if ferr := out.Flush(); err == nil {
		err = ferr
	}
	return err
}

// verifyWAL checks a ring or spill file wholly, a ring with the batches of the
// segments beside it that it refers to.
func verifyWAL(kind, name string) (segment.Report, error) {
	rep := segment.Report{Kind: segment.Kind(kind), Base: -1, Last: -1}
	err := scanWAL(kind, name, func(e *wal.Entry, _ int64) error {
		b := e.Data
		if e.Kind == wal.KindRef {
			var err error
			if b, err = storage.ReadRef(vfs.OS(), filepath.Dir(filepath.Dir(name)), e); errors.Is(err, fs.ErrNotExist) {
				return nil // the segment was dropped since
			} else if err != nil {
				return err
			}
		}
		if h, err := batch.Parse(b); (e.Kind == wal.KindBatch || e.Kind == wal.KindRef) && err == nil {
			rep.Batches++
			rep.Records += int64(h.NumRecords)
		}
		return nil
	})
	return rep, err
}
