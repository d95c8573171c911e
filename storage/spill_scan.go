package storage

import (
	"errors"
	"fmt"

	"github.com/cirrolog/cirrolog/storage/vfs"
	"github.com/cirrolog/cirrolog/storage/wal"
)

// ScanSpill reads and verifies the spill file at path and calls fn, if not nil,
// for every entry with its position. It returns how many there are. For tools.
func ScanSpill(fsys vfs.FS, path string, fn func(e *wal.Entry, pos int64) error) (entries int64, err error) {
	f, err := fsys.Open(path, vfs.ReadOnly)
	if err != nil {
		return 0, fmt.Errorf("scan spill file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return 0, fmt.Errorf("scan spill file: %w", err)
	}
	if size > 2*maxSpill+wal.MaxJumbo {
		return 0, fmt.Errorf("scan spill file %s: %w: %d bytes", path, ErrDamaged, size)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return 0, fmt.Errorf("scan spill file %s: %w", path, err)
	}
	err = decodeSpill(b, func(e *wal.Entry, pos int64) error {
		entries++
		if fn == nil {
			return nil
		}
		return fn(e, pos)
	})
	if err != nil {
		return entries, fmt.Errorf("scan spill file %s: %w", path, err)
	}
	return entries, nil
}
