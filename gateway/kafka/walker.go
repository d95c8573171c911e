package kafka

import "encoding/binary"

// walker walks the primitive types of the protocol; after the first misfit it
// is bad and everything is zero.
type walker struct {
	b        []byte
	flexible bool
	bad      bool
}

func (w *walker) skip(n int) {
	if w.bad || n < 0 || n > len(w.b) {
		w.bad = true
		return
	}
	w.b = w.b[n:]
}

func (w *walker) uvarint() int {
	n, k := binary.Uvarint(w.b)
	if w.bad || k <= 0 || n > 1<<31 {
		w.bad = true
		return 0
	}
	w.b = w.b[k:]
	return int(n)
}

// count reads an array's length; each element needs at least elem bytes.
func (w *walker) count(elem int) int {
	n := 0
	if w.flexible {
		n = w.uvarint() - 1
	} else if len(w.b) >= 4 {
		n = int(int32(binary.BigEndian.Uint32(w.b)))
		w.skip(4)
	} else {
		w.bad = true
	}
	if w.bad || n > len(w.b)/elem {
		w.bad = true
		return 0
	}
	return max(n, 0)
}

func (w *walker) skipString() {
	if w.flexible {
		w.skip(max(w.uvarint()-1, 0))
		return
	}
	if len(w.b) < 2 {
		w.bad = true
		return
	}
	n := int(int16(binary.BigEndian.Uint16(w.b)))
	w.skip(2)
	w.skip(max(n, 0))
}

func (w *walker) skipBytes() { w.skip(w.bytesLen()) }

// bytesLen reads the length of bytes, 0 for null.
func (w *walker) bytesLen() int {
	if w.flexible {
		return max(w.uvarint()-1, 0)
	}
	if len(w.b) < 4 {
		w.bad = true
		return 0
	}
	n := int(int32(binary.BigEndian.Uint32(w.b)))
	w.skip(4)
	return max(n, 0)
}

func (w *walker) skipTags() {
	if !w.flexible {
		return
	}
	for range w.uvarint() {
		w.uvarint()
		w.skip(w.uvarint())
		if w.bad {
			return
		}
	}
}
