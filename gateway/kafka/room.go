package kafka

import (
	"encoding/binary"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

const (
	// minRoom is the least size of a Produce request that is read to where the disk can
	// take its batch from.
	minRoom = 64 << 10
	// headPeek is how much of a request is looked at for that.
	headPeek = 1 << 10
)

// produceHead is what a Produce request begins with, up to its records.
type produceHead struct {
	topic      string
	id         ids.TopicID // from version 13 on, instead of topic
	partition  int32
	head, size int // where the records are in the request
}

// parseProduceHead reads the beginning of a Produce request of size bytes. It is not
// ok when b has too little of it, or there is more than one partition.
func parseProduceHead(b []byte, size int) (p produceHead, ok bool) {
	h, err := parseHeader(b)
	if err != nil || h.version < minProduceVersion || h.version > maxProduceVersion {
		return p, false
	}
	if h.version >= 9 {
		if h.body, err = skipTags(h.body); err != nil {
			return p, false
		}
	}
	w := walker{b: h.body, flexible: h.version >= 9}
	w.skipString()
	w.skip(2 + 4)
	topics := w.count(3)
	name := w.b
	if h.version >= 13 {
		w.skip(16)
	} else {
		w.skipString()
	}
	name = name[:len(name)-len(w.b)]
	if w.count(5) != 1 || topics != 1 {
		return p, false
	}
	if len(w.b) >= 4 {
		p.partition = int32(binary.BigEndian.Uint32(w.b))
	}
	w.skip(4)
	p.size = w.bytesLen()
	p.head = len(b) - len(w.b)
	if w.bad || p.size <= 0 || p.head+p.size > size {
		return p, false
	}
	switch {
	case h.version >= 13:
		copy(p.id[:], name)
	case h.version >= 9:
		_, k := binary.Uvarint(name)
		p.topic = string(name[k:])
	default:
		p.topic = string(name[2:])
	}
	return p, true
}

// room returns memory for the request of size bytes that comes, or nil.
func (c *conn) room(size int) *broker.Room {
	if size < minRoom {
		return nil
	}
	b, err := c.br.Peek(4 + headPeek)
	if err != nil {
		return nil // whoever reads the rest will meet it
	}
	p, ok := parseProduceHead(b[4:], size)
	if !ok {
		return nil
	}
	var topic *broker.Topic
	if p.topic != "" {
		topic = c.s.b.Topic(p.topic)
	} else {
		topic = c.s.b.TopicByID(p.id)
	}
	if topic == nil {
		return nil
	}
	part, err := c.s.b.Partition(topic.ID, p.partition)
	if err != nil {
		return nil
	}
	return part.Room(size, p.head, p.size)
}
