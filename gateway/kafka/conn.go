package kafka

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// conn is one client connection.
type conn struct {
	s    *Server
	nc   net.Conn
	host string
	br   *bufio.Reader
	out  chan *reply // answers in order of the requests
	ctx  context.Context
	stop context.CancelFunc
	dead atomic.Bool // the writer has failed
}

// reply is the place of one answer in the order of the connection.
type reply struct {
	ready   chan struct{} // one value when the answer can be encoded
	pending atomic.Int32
	resp    kmsg.Response
	corr    uint32
	bufs    net.Buffers // instead of resp: encoded already
	release func()
	last    bool // close the connection behind this answer
	api     *api
	version int16
	began   time.Time
}

func (r *reply) done() {
	if r.pending.Add(-1) == 0 {
		r.ready <- struct{}{}
	}
}

func newConn(s *Server, nc net.Conn, host string) *conn {
	c := &conn{s: s, nc: nc, host: host, br: bufio.NewReaderSize(nc, 32<<10), out: make(chan *reply, s.limits.MaxPipelined)}
	c.ctx, c.stop = context.WithCancel(s.ctx)
	return c
}

// run serves the connection until it ends.
func (c *conn) run() {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		c.writeLoop()
	}()
	err := c.readLoop()
	close(c.out)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		c.s.log.Debug("connection closed", "client", c.nc.RemoteAddr().String(), "err", err)
	}
	wg.Wait()
	c.stop()
	c.nc.Close()
}

// stopReading makes the reader end after the request it is at.
func (c *conn) stopReading() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) }

func (c *conn) readLoop() error {
	for {
		err := c.readOne()
		if err != nil {
			return err
		}
		if c.s.ctx.Err() != nil || c.dead.Load() {
			return nil
		}
	}
}

// header is a request's header.
type header struct {
	key, version int16
	corr         uint32
	body         []byte
	req          kmsg.Request
}

// readOne reads and handles one request.
func (c *conn) readOne() error {
	if c.s.ctx.Err() == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.s.limits.Idle))
	}
	if _, err := c.br.Peek(1); err != nil {
		return err
	}
	if c.br.Buffered() < 8 && c.s.ctx.Err() == nil { // a frame has begun: no dawdling
		_ = c.nc.SetReadDeadline(time.Now().Add(c.s.limits.Frame))
	}
	prefix, err := c.br.Peek(6)
	if err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	size := int(int32(binary.BigEndian.Uint32(prefix)))
	key := int16(binary.BigEndian.Uint16(prefix[4:]))
	limit := c.s.limits.MaxControl
	if key == kmsg.Produce.Int16() {
		limit = c.s.limits.MaxFrame
	}
	if size < 8 || size > limit {
		return fmt.Errorf("frame of %d bytes for api key %d, limit %d", size, key, limit)
	}
	weight := int64(size)
	if key != kmsg.Produce.Int16() {
		// kmsg makes an array element of up to some 100 bytes for each byte.
		weight = min(controlWeight*weight, c.s.limits.MaxInFlight)
	}
	if err := c.s.inFlight.Acquire(c.ctx, weight); err != nil {
		return err
	}
	defer c.s.inFlight.Release(weight)
	if c.br.Buffered() < 4+size && c.s.ctx.Err() == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.s.limits.Frame))
	}
	frame, err := c.s.frames.read(c.br, size)
	if err != nil {
		return fmt.Errorf("read frame of %d bytes: %w", size, err)
	}
	defer c.s.frames.put(frame)
	h, err := parseHeader(frame.b)
	if err != nil {
		return err
	}
	return c.handle(h)
}

// controlWeight is how many bytes of memory a byte of a decoded request other
// than Produce is counted as.
const controlWeight = 32

// parseHeader reads a request header (v1, or v2 when the request is flexible).
func parseHeader(b []byte) (header, error) {
	h := header{key: int16(binary.BigEndian.Uint16(b)), version: int16(binary.BigEndian.Uint16(b[2:])), corr: binary.BigEndian.Uint32(b[4:])}
	b = b[8:]
	if len(b) < 2 {
		return h, errors.New("request header has no client id")
	}
	n := int(int16(binary.BigEndian.Uint16(b)))
	b = b[2:]
	if n > len(b) {
		return h, fmt.Errorf("client id of %d bytes in a frame with %d left", n, len(b))
	}
	if n > 0 {
		b = b[n:]
	}
	h.body = b
	return h, nil
}

// handle dispatches one request.
func (c *conn) handle(h header) error {
	a, ok := c.s.apis[h.key]
	if !ok {
		return fmt.Errorf("unknown api key %d", h.key)
	}
	r := &reply{ready: make(chan struct{}, 1), corr: h.corr, api: &a, version: h.version, began: time.Now()}
	if h.version < a.min || h.version > a.max {
		return c.unsupported(h, a, r)
	}
	req := kmsg.RequestForKey(h.key)
	req.SetVersion(h.version)
	if req.IsFlexible() {
		var err error
		if h.body, err = skipTags(h.body); err != nil {
			return fmt.Errorf("request header of %s v%d: %w", a.name, h.version, err)
		}
	}
	if h.key == kmsg.Produce.Int16() {
		return c.produce(h, req.(*kmsg.ProduceRequest), r)
	}
	if err := req.ReadFrom(h.body); err != nil {
		return fmt.Errorf("decode %s v%d: %w", a.name, h.version, err)
	}
	if f, ok := req.(*kmsg.FetchRequest); ok {
		return c.fetch(f, r)
	}
	resp, err := a.handle(c.ctx, c, req)
	if err != nil {
		return fmt.Errorf("%s v%d: %w", a.name, h.version, err)
	}
	r.resp = resp
	return c.send(r)
}

// unsupported answers a version that is not served. ApiVersions gets the v0
// answer that lets the client choose another; for others Kafka closes the
// connection, but Produce 0-2, which are advertised, get their error code.
func (c *conn) unsupported(h header, a api, r *reply) error {
	switch {
	case h.key == kmsg.ApiVersions.Int16():
		r.resp = c.s.apiVersionsResponse(0, errUnsupportedVersion)
		return c.send(r)
	default:
		return fmt.Errorf("%s v%d is not served (%d to %d)", a.name, h.version, a.min, a.max)
	}
}

// skipTags skips a tag section.
func skipTags(b []byte) ([]byte, error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > 64 {
		return nil, errors.New("bad tag section")
	}
	b = b[w:]
	for range n {
		_, w := binary.Uvarint(b)
		if w <= 0 {
			return nil, errors.New("bad tag")
		}
		size, w2 := binary.Uvarint(b[w:])
		if w2 <= 0 || size > uint64(len(b)-w-w2) {
			return nil, errors.New("bad tag size")
		}
		b = b[w+w2+int(size):]
	}
	return b, nil
}

// send queues an answer that is ready.
func (c *conn) send(r *reply) error {
	r.ready <- struct{}{}
	return c.queue(r)
}

// queue gives the answer its place. It waits while too many are under way.
func (c *conn) queue(r *reply) error {
	select {
	case c.out <- r:
		return nil
	case <-c.ctx.Done():
		if r.release != nil {
			r.release()
		}
		return net.ErrClosed
	}
}

// maxGather bounds how many answers leave in one write.
const maxGather = 64

// writeLoop sends the answers in order, as many at once as are ready.
func (c *conn) writeLoop() {
	var enc []byte
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
					batch = append(batch, next)
				default: // not ready: send what is, then wait for it
					enc = c.write(batch, enc)
					batch = batch[:0]
					<-next.ready
					batch = append(batch, next)
				}
			default:
				break gather
			}
		}
		enc = c.write(batch, enc)
	}
}

// write encodes and sends the answers. After a failure it only releases them.
func (c *conn) write(batch []*reply, enc []byte) []byte {
	enc = enc[:0]
	var bufs net.Buffers
	for _, r := range batch {
		if r.bufs != nil {
			bufs = append(bufs, r.bufs...)
		} else {
			enc = appendResponse(enc, r)
		}
		c.s.observer.Request(r.api.name, r.version, 0, time.Since(r.began))
	}
	if len(enc) > 0 {
		bufs = append(net.Buffers{enc}, bufs...)
	}
	if !c.dead.Load() {
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.s.limits.Write))
		if _, err := bufs.WriteTo(c.nc); err != nil {
			c.dead.Store(true)
			c.stop()
			c.nc.Close() // wakes the reader
		}
	}
	for _, r := range batch {
		if r.release != nil {
			r.release()
		}
	}
	if cap(enc) > 1<<20 {
		return nil
	}
	return enc
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
