package kafka

import (
	"encoding/binary"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// headPeek is how much of a Produce request is looked at to read it to where the disk
// can take its batch from.
const headPeek = 1 << 10

// produceHead is what a Produce request begins with, up to its records.
type produceHead struct {
	version    int16
	topic      kmsg.ProduceRequestTopic // its name or id
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
	topics := w.produceTopics(h.version)
	name := w.b
	w.skipTopic(h.version)
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
	p.version = h.version
	switch {
	case h.version >= 13:
		copy(p.topic.TopicID[:], name)
	case h.version >= 9:
		_, k := binary.Uvarint(name)
		p.topic.Topic = string(name[k:])
	default:
		p.topic.Topic = string(name[2:])
	}
	return p, true
}

// room returns memory for the request of size bytes that comes, or nil.
func (c *conn) room(size int) *broker.Room {
	if size < broker.MinRoom {
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
	topic, err := c.produceTo(&p.topic, p.version)
	if err != nil {
		return nil
	}
	part, err := c.s.b.Partition(topic.ID, p.partition)
	if err != nil {
		return nil
	}
	return part.Room(size, p.head, p.size)
}
