package kafka

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// reply is the place of one answer in the order of the connection.
type reply struct {
	ready   chan struct{} // one value when the answer can be encoded
	pending atomic.Int32
	api     *api
	version int16
	corr    uint32
	code    int16 // for the observer
	began   time.Time

	resp    kmsg.Response
	bufs    net.Buffers // instead of resp: encoded already
	release func()
	waited  bool         // the reader waits until it was written
	produce *produceCall // resp belongs to it
	silent  bool         // acks=0: nothing is sent
}

func newReply(h header, a *api) *reply {
	return &reply{ready: make(chan struct{}, 1), corr: h.corr, api: a, version: h.version, began: time.Now()}
}

func (r *reply) done() {
	if r.pending.Add(-1) == 0 {
		r.ready <- struct{}{}
	}
}

// send sends an answer that is ready and waits until it was written: until
// then a client that does not read its answers gets no more of them. When no
// earlier answer is under way the reader writes it itself: that saves two
// hand-overs between goroutines, and what was just read is still in the cache
// of this processor.
func (c *conn) send(r *reply) {
	if c.queued.Load() == 0 {
		c.write(append(c.one[:0], r))
		c.one[0] = nil
		return
	}
	r.waited = true
	r.ready <- struct{}{}
	c.queue(r)
	<-c.sent
}

// queue hands an answer to the writer.
func (c *conn) queue(r *reply) {
	c.queued.Add(1)
	c.out <- r
}

// maxGather bounds how many answers leave in one write.
const maxGather = 64

// writeLoop sends the answers in order, as many at once as are ready. It goes
// on to the last answer when the connection is dead, to release them.
func (c *conn) writeLoop() {
	var batch []*reply
	for r := range c.out {
		<-r.ready
		batch = append(batch[:0], r)
	gather:
		for len(batch) < maxGather && batch[len(batch)-1].bufs == nil {
			select {
			case next, ok := <-c.out:
				if !ok {
					break gather
				}
				select {
				case <-next.ready:
				default: // not ready: send what is, then wait for it
					c.writeQueued(batch)
					batch = batch[:0]
					<-next.ready
				}
				batch = append(batch, next)
			default:
				break gather
			}
		}
		c.writeQueued(batch)
	}
}

// writeQueued writes answers of the queue; then the reader may write again.
func (c *conn) writeQueued(batch []*reply) {
	waited := batch[len(batch)-1].waited // the reader goes on when this one is sent
	c.write(batch)
	c.queued.Add(int32(-len(batch)))
	if waited {
		c.sent <- struct{}{}
	}
}

// write encodes and sends answers, of which only the last may be encoded
// already. After a failure it only releases them. The reader and the writer
// never do it at the same time: see send.
func (c *conn) write(batch []*reply) {
	c.enc = c.enc[:0]
	c.bufs = c.bufs[:0]
	hangUp, answer := false, false
	for _, r := range batch {
		answer = answer || r.api.key != kmsg.ApiVersions.Int16()
		if r.produce != nil {
			r.code = r.produce.code()
		}
		switch {
		case hangUp:
		case r.silent:
			hangUp = r.code != 0
		case r.bufs == nil:
			c.enc = appendResponse(c.enc, r)
		}
		c.s.observer.Request(r.api.name, r.version, r.code, time.Since(r.began))
	}
	if len(c.enc) > 0 {
		c.bufs = append(c.bufs, c.enc)
	}
	if !hangUp {
		c.bufs = append(c.bufs, batch[len(batch)-1].bufs...)
	}
	if len(c.bufs) > 0 && !c.dead.Load() && c.flush() != nil {
		hangUp = true
	}
	if answer {
		c.answered.Store(true)
	}
	if hangUp {
		c.hangUp()
	}
	for _, r := range batch {
		c.finish(r)
	}
	clear(c.bufs[:cap(c.bufs)])
	if cap(c.enc) > 1<<20 || cap(c.bufs) > 1<<12 {
		c.enc, c.bufs = nil, nil
	}
}

// hangUp ends the connection: it wakes the reader.
func (c *conn) hangUp() {
	c.dead.Store(true)
	c.stop()
	c.nc.Close()
}

// finish lets go of an answer.
func (c *conn) finish(r *reply) {
	if r.release != nil {
		r.release()
	}
	if r.produce != nil {
		r.produce.recycle(c.s) // and r with it
	}
}

// flush writes c.bufs. A client that takes its answer slowly but steadily is
// not cut off, unless it is so slow that the memory which the answer holds would
// be missed by others.
func (c *conn) flush() error {
	bufs := c.bufs
	for {
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.s.limits.Write))
		n, err := bufs.WriteTo(c.nc)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || n < int64(c.s.limits.MinProgress) {
			return err
		}
	}
}

// appendResponse appends a framed response.
func appendResponse(b []byte, r *reply) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, r.corr)
	// The header of an ApiVersions response never has tags (KIP-511).
	if r.resp.IsFlexible() && r.resp.Key() != kmsg.ApiVersions.Int16() {
		b = append(b, 0)
	}
	b = r.resp.AppendTo(b)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}
