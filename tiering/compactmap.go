package tiering

import (
	"crypto/sha256"
	"encoding/binary"
)

// keyHash stands for a record's key. Two keys with the same one would be taken
// for one, so it is 128 bits of a cryptographic hash, as in Kafka.
type keyHash [16]byte

func hashKey(key []byte) keyHash {
	sum := sha256.Sum256(key)
	return keyHash(sum[:16])
}

// keyMap holds the greatest offset of each key of the part of a log that is
// being cleaned: a hash table with open addressing in a bounded piece of memory.
type keyMap struct {
	slots []keySlot // a power of two of them
	used  int
	limit int // slots that the memory allows
}

type keySlot struct {
	hash keyHash
	next int64 // offset + 1; 0: empty
}

const (
	keySlotSize = 24 // bytes
	minKeySlots = 64
)

func newKeyMap(bytes int64) *keyMap {
	limit := minKeySlots
	for int64(limit)*2*keySlotSize <= bytes {
		limit *= 2
	}
	return &keyMap{slots: make([]keySlot, minKeySlots), limit: limit}
}

// room is how many more keys the map takes within its memory.
func (m *keyMap) room() int { return m.limit/4*3 - m.used }

// put notes an offset of a key; offsets come in order. It grows beyond the
// bound when the caller did not look at room.
func (m *keyMap) put(h keyHash, offset int64) {
	if m.used >= len(m.slots)/4*3 {
		m.grow()
	}
	s := m.find(h)
	if s.next == 0 {
		s.hash = h
		m.used++
	}
	s.next = max(s.next, offset+1)
}

// latest returns the greatest offset of a key, -1 when it has none.
func (m *keyMap) latest(h keyHash) int64 { return m.find(h).next - 1 }

func (m *keyMap) find(h keyHash) *keySlot {
	mask := uint64(len(m.slots) - 1)
	for i := binary.LittleEndian.Uint64(h[:]); ; i++ {
		if s := &m.slots[i&mask]; s.next == 0 || s.hash == h {
			return s
		}
	}
}

func (m *keyMap) grow() {
	old := m.slots
	m.slots = make([]keySlot, 2*len(old))
	for i := range old {
		if old[i].next != 0 {
			*m.find(old[i].hash) = old[i]
		}
	}
}
