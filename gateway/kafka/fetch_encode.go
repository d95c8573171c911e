package kafka

import (
	"cmp"
	"encoding/binary"
	"net"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// fetchAnswer is a Fetch response before encoding. The record bytes are never
// copied: they leave by writev, between pieces of the encoded rest.
type fetchAnswer struct {
	version   int16
	corr      uint32
	errorCode int16
	sessionID int32
	topics    []fetchAnswerTopic
}

type fetchAnswerTopic struct {
	name       string
	id         ids.TopicID
	partitions []fetchAnswerPartition
}

type fetchAnswerPartition struct {
	partition int32
	errorCode int16
	preferred int32 // node to read from instead; 0: none
	res       broker.ReadResult
}

// fetchEncoder appends to out and remembers where record bytes go between.
type fetchEncoder struct {
	out      []byte
	cuts     []fetchCut
	flexible bool
	records  int
}

type fetchCut struct {
	at   int
	data [][]byte
}

// encode returns the framed response as buffers.
func (a *fetchAnswer) encode() net.Buffers {
	e := &fetchEncoder{flexible: a.version >= 12, out: make([]byte, 0, a.sizeHint())}
	be := binary.BigEndian
	e.out = append(e.out, 0, 0, 0, 0)
	e.out = be.AppendUint32(e.out, a.corr)
	e.tags()                          // response header
	e.out = be.AppendUint32(e.out, 0) // throttle time
	if a.version >= 7 {
		e.out = be.AppendUint16(e.out, uint16(a.errorCode))
		e.out = be.AppendUint32(e.out, uint32(a.sessionID))
	}
	e.array(len(a.topics))
	for i := range a.topics {
		t := &a.topics[i]
		if a.version >= 13 {
			e.out = append(e.out, t.id[:]...)
		} else {
			e.str(t.name)
		}
		e.array(len(t.partitions))
		for j := range t.partitions {
			e.partition(a.version, &t.partitions[j])
		}
		e.tags()
	}
	e.tags()
	be.PutUint32(e.out, uint32(len(e.out)-4+e.records))
	return e.buffers()
}

func (a *fetchAnswer) sizeHint() int {
	n := 64
	for i := range a.topics {
		n += 32 + len(a.topics[i].name) + 64*len(a.topics[i].partitions)
	}
	return n
}

func (e *fetchEncoder) partition(version int16, p *fetchAnswerPartition) {
	be := binary.BigEndian
	e.out = be.AppendUint32(e.out, uint32(p.partition))
	e.out = be.AppendUint16(e.out, uint16(p.errorCode))
	e.out = be.AppendUint64(e.out, uint64(p.res.HighWatermark))
	e.out = be.AppendUint64(e.out, uint64(p.res.LastStable))
	if version >= 5 {
		e.out = be.AppendUint64(e.out, uint64(p.res.LogStart))
	}
	if p.res.Aborted == nil {
		e.nullArray()
	} else {
		e.array(len(p.res.Aborted))
		for _, t := range p.res.Aborted {
			e.out = be.AppendUint64(e.out, uint64(t.ProducerID))
			e.out = be.AppendUint64(e.out, uint64(t.FirstOffset))
			e.tags()
		}
	}
	if version >= 11 {
		e.out = be.AppendUint32(e.out, uint32(cmp.Or(p.preferred, -1)))
	}
	size := 0
	for _, d := range p.res.Data {
		size += len(d)
	}
	if e.flexible {
		e.out = binary.AppendUvarint(e.out, uint64(size)+1)
	} else {
		e.out = be.AppendUint32(e.out, uint32(size))
	}
	if size > 0 {
		e.cuts = append(e.cuts, fetchCut{at: len(e.out), data: p.res.Data})
		e.records += size
	}
	if d := p.res.Diverging; d != nil && e.flexible {
		e.out = append(e.out, 1, 0, 13) // one tag, number 0, 13 bytes
		e.out = be.AppendUint32(e.out, uint32(d.Epoch))
		e.out = be.AppendUint64(e.out, uint64(d.EndOffset))
		e.out = append(e.out, 0)
		return
	}
	e.tags()
}

func (e *fetchEncoder) tags() {
	if e.flexible {
		e.out = append(e.out, 0)
	}
}

func (e *fetchEncoder) array(n int) {
	if e.flexible {
		e.out = binary.AppendUvarint(e.out, uint64(n)+1)
	} else {
		e.out = binary.BigEndian.AppendUint32(e.out, uint32(n))
	}
}

func (e *fetchEncoder) nullArray() {
	if e.flexible {
		e.out = append(e.out, 0)
	} else {
		e.out = binary.BigEndian.AppendUint32(e.out, 0xffffffff)
	}
}

func (e *fetchEncoder) str(s string) {
	if e.flexible {
		e.out = binary.AppendUvarint(e.out, uint64(len(s))+1)
	} else {
		e.out = binary.BigEndian.AppendUint16(e.out, uint16(len(s)))
	}
	e.out = append(e.out, s...)
}

func (e *fetchEncoder) buffers() net.Buffers {
	n := 1 + len(e.cuts)
	for _, c := range e.cuts {
		n += len(c.data)
	}
	bufs := make(net.Buffers, 0, n)
	prev := 0
	for _, c := range e.cuts {
		if c.at > prev {
			bufs = append(bufs, e.out[prev:c.at])
			prev = c.at
		}
		bufs = append(bufs, c.data...)
	}
	if prev < len(e.out) {
		bufs = append(bufs, e.out[prev:])
	}
	return bufs
}
