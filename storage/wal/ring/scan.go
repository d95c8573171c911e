package ring

import (
	"errors"
	"fmt"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// Report is what Scan found.
type Report struct {
	Size         int64 // of the ring, bytes
	Trimmed, End wal.Pos
	Commits      int64
	Entries      int64
}

// Scan reads the ring at path without changing it and calls fn, if not nil, for
// every entry that a replay would bring, until fn returns an error. It is for
// tools: while an agent writes to the ring, it may see a torn end or damage that
// is none. Entries are valid during the call. Damage wraps wal.ErrDamaged.
func Scan(fsys vfs.FS, path string, fn func(*wal.Entry) error) (rep Report, err error) {
	f, err := fsys.Open(path, vfs.ReadOnly)
	if err != nil {
		return rep, fmt.Errorf("scan wal: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := vfs.AlignedBytes(dataStart)
	if n, err := f.ReadAt(b, 0); n < dataStart {
		return rep, fmt.Errorf("scan wal: %w: %s has no superblock: %w", wal.ErrDamaged, path, err)
	}
	sb, err := decodeSuper(b)
	if err != nil {
		return rep, fmt.Errorf("scan wal %s: %w", path, err)
	}
	r := &Ring{opts: Options{FS: fsys, Path: path, DiskID: sb.diskID}, file: f}
	if err := r.loadHead(b); err != nil {
		return rep, fmt.Errorf("scan wal %s: %w", path, err)
	}
	rep = Report{Size: r.size, Trimmed: r.trimmed}
	rep.End, err = r.walk(func(entries []wal.Entry) error {
		rep.Commits++
		rep.Entries += int64(len(entries))
		for i := range entries {
			if fn == nil {
				break
			}
			if err := fn(&entries[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return rep, fmt.Errorf("scan wal %s: %w", path, err)
	}
	return rep, nil
}
