package kafka

import (
	"bufio"
	"io"
	"sync"

	"github.com/cirrolog/cirrolog/services/broker"
)

// Frames are recycled by size class, so that a steady load allocates nothing.
const (
	minFrameClass = 12 // 4 KiB
	maxFrameClass = 24 // 16 MiB; larger frames are not kept
	// frameStep is how much of a large frame is allocated ahead of its bytes.
	frameStep = 4 << 20
)

type frame struct {
	b     []byte
	class int
	room  *broker.Room // b is there
}

type framePool struct {
	classes [maxFrameClass + 1]sync.Pool
}

// read reads a frame of size bytes and the four of its length before it.
// Memory beyond frameStep is only allocated as bytes arrive, so a lying length
// costs nothing; a room, when not nil, has it all. The frame releases the room.
func (p *framePool) read(br *bufio.Reader, size int, room *broker.Room) (*frame, error) {
	var f *frame
	if room != nil {
		f = &frame{b: room.B, room: room}
	} else {
		f = p.get(min(size, frameStep))
	}
	if _, err := br.Discard(4); err != nil {
		p.put(f)
		return nil, err
	}
	f.b = f.b[:min(size, cap(f.b))]
	if err := p.fill(br, f, size); err != nil {
		p.put(f)
		return nil, err
	}
	return f, nil
}

// fill reads size bytes into f, which grows with them.
func (p *framePool) fill(br *bufio.Reader, f *frame, size int) error {
	have := 0
	for {
		n, err := io.ReadFull(br, f.b[have:])
		have += n
		if err != nil || have == size {
			return err
		}
		bigger := p.get(min(size, 2*have))
		copy(bigger.b, f.b)
		*f, *bigger = *bigger, *f
		p.put(bigger)
		f.b = f.b[:min(size, cap(f.b))]
	}
}

func (p *framePool) get(size int) *frame {
	class := minFrameClass
	for 1<<class < size {
		class++
	}
	if class > maxFrameClass {
		return &frame{b: make([]byte, size), class: class}
	}
	if f, ok := p.classes[class].Get().(*frame); ok {
		f.b = f.b[:cap(f.b)]
		return f
	}
	return &frame{b: make([]byte, 1<<class), class: class}
}

// put takes back a frame: nothing may refer to its bytes any more.
func (p *framePool) put(f *frame) {
	if f.room != nil {
		f.room.Release()
		return
	}
	if f.class <= maxFrameClass {
		p.classes[f.class].Put(f)
	}
}
