package group

import (
	"encoding/binary"
	"fmt"
)

// walker steps over the fields of a value. The decoder of kmsg makes room for
// as many members and tags as a value claims to have; this says beforehand
// whether they can be there.
type walker struct {
	b    []byte
	flex bool
	bad  bool
}

func (w *walker) skip(n int) {
	if n < 0 || n > len(w.b) {
		w.bad, w.b = true, nil
		return
	}
	w.b = w.b[n:]
}

func (w *walker) uvarint() int {
	v, n := binary.Uvarint(w.b)
	if n <= 0 || v > 1<<31-1 {
		w.bad, w.b = true, nil
		return 0
	}
	w.b = w.b[n:]
	return int(v)
}

// length reads the length of a string, a byte string or an array; null is 0.
// Width is its size in bytes where it is fixed.
func (w *walker) length(width int) int {
	if w.flex {
		return max(w.uvarint()-1, 0)
	}
	if len(w.b) < width {
		w.bad, w.b = true, nil
		return 0
	}
	n := int(int16(binary.BigEndian.Uint16(w.b)))
	if width == 4 {
		n = int(int32(binary.BigEndian.Uint32(w.b)))
	}
	w.b = w.b[width:]
	return max(n, 0)
}

func (w *walker) str()   { w.skip(w.length(2)) }
func (w *walker) bytes() { w.skip(w.length(4)) }

func (w *walker) tags() {
	if !w.flex {
		return
	}
	for n := w.uvarint(); n > 0 && !w.bad; n-- {
		w.uvarint()
		w.skip(w.uvarint())
	}
}

// checkGroupValue walks over a GroupMetadataValue of a known version.
func checkGroupValue(value []byte) error {
	version := binary.BigEndian.Uint16(value)
	w := &walker{b: value[2:], flex: version >= 4}
	w.str()
	w.skip(4)
	w.str()
	w.str()
	if version >= 2 {
		w.skip(8)
	}
	for n := w.length(4); n > 0 && !w.bad; n-- {
		w.str()
		if version >= 3 {
			w.str()
		}
		w.str()
		w.str()
		if version >= 1 {
			w.skip(4)
		}
		w.skip(4)
		w.bytes()
		w.bytes()
		w.tags()
	}
	w.tags()
	if w.bad || len(w.b) != 0 {
		return fmt.Errorf("read group: %w", ErrCorruptRecord)
	}
	return nil
}
