package kafka

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// conn is one client connection.
type conn struct {
	s      *Server
	nc     net.Conn
	br     *bufio.Reader
	out    chan *reply   // answers in order of the requests
	sent   chan struct{} // the writer is done with an answer that the reader waits for
	ctx    context.Context
	stop   context.CancelFunc
	dead   atomic.Bool // the writer has failed
	held   int64       // of Server.inFlight; the reader's
	client []byte      // client id of the request at hand, in its frame; the reader's

	queued   atomic.Int32 // answers given to the writer that it has not done yet
	answered atomic.Bool  // something but ApiVersions

	away awayList // the reader's

	// The buffers of write.
	enc  []byte
	bufs net.Buffers
	one  [1]*reply
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, nc: nc, br: bufio.NewReaderSize(nc, readBuffer), out: make(chan *reply, s.limits.MaxPipelined), sent: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancel(s.ctx)
	return c
}

// readBuffer is the buffer of a connection; longer frames go round it.
const readBuffer = 16 << 10

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
	c.close()
}

// close closes the connection, with a reset when the server ends before it has answered anything but ApiVersions.
func (c *conn) close() {
	if !c.answered.Load() && c.s.ctx.Err() != nil {
		reset(c.nc)
		return
	}
	c.nc.Close()
}

// reset closes a connection that was not answered yet because this server can't serve it now. Clients take an
// orderly end before the first answer, and that to ApiVersions is none, for a wrong security protocol, and some
// (franz-go) then fail what they were to send; a reset they try again.
func reset(nc net.Conn) {
	if l, ok := nc.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	nc.Close()
}

// stopReading makes the reader end after the request it is at.
func (c *conn) stopReading() { _ = c.nc.SetReadDeadline(time.Unix(1, 0)) }

// expect gives the client so long to send; after Shutdown has begun, no time.
func (c *conn) expect(d time.Duration) {
	_ = c.nc.SetReadDeadline(time.Now().Add(d))
	if c.s.ctx.Err() != nil { // stopReading may have come before
		c.stopReading()
	}
}

// readLoop reads and handles requests. A panic of a handler, which is a bug,
// costs the connection and not the process.
func (c *conn) readLoop() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			c.s.log.Error("handler failed", "client", c.nc.RemoteAddr().String(), "panic", p, "stack", string(debug.Stack()))
		}
	}()
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
	client, body []byte
	room         *broker.Room // where the request is, or nil
}

// readOne reads and handles one request.
func (c *conn) readOne() error {
	c.expect(c.s.limits.Idle)
	if _, err := c.br.Peek(1); err != nil {
		return err
	}
	if c.br.Buffered() < prefixSize { // a frame has begun: no dawdling
		c.expect(c.s.limits.Frame)
	}
	prefix, err := c.br.Peek(prefixSize)
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
		weight *= decodeWeight
	}
	if err := c.hold(weight); err != nil {
		return err
	}
	defer c.keep(0)
	if c.br.Buffered() < 4+size {
		c.expect(c.s.limits.Frame)
	}
	var room *broker.Room
	if key == kmsg.Produce.Int16() {
		room = c.room(size)
	}
	frame, err := c.s.frames.read(c.br, size, room)
	if err != nil {
		return fmt.Errorf("read frame of %d bytes: %w", size, err)
	}
	defer c.s.frames.put(frame)
	h, err := parseHeader(frame.b)
	if err != nil {
		return err
	}
	h.room = room
	return c.handle(h)
}

const (
	// prefixSize is the length and the api key, which the limit depends on.
	prefixSize = 6
	// decodeWeight is how many bytes of memory a byte of a request other than
	// Produce counts while it is decoded, elementWeight how many an array
	// element does while it is handled.
	decodeWeight  = 32
	elementWeight = 256
)

// hold takes n bytes of the budget of all connections; it waits for them.
func (c *conn) hold(n int64) error {
	n = min(n, c.s.limits.MaxInFlight)
	if err := c.s.inFlight.Acquire(c.ctx, n); err != nil {
		return err
	}
	c.held = n
	return nil
}

// keep gives back what is held above n bytes.
func (c *conn) keep(n int64) {
	if c.held > n {
		c.s.inFlight.Release(c.held - n)
		c.held = n
	}
}

// parseHeader reads a request header (v1, or v2 when the request is flexible).
func parseHeader(b []byte) (header, error) {
	h := header{key: int16(binary.BigEndian.Uint16(b)), version: int16(binary.BigEndian.Uint16(b[2:])), corr: binary.BigEndian.Uint32(b[4:])}
	b = b[8:]
	if len(b) < 2 {
		return h, errors.New("request header has no client id")
	}
	n := int(int16(binary.BigEndian.Uint16(b)))
	b = b[2:]
	if n > len(b) || n < -1 {
		return h, fmt.Errorf("client id of %d bytes in a frame with %d left", n, len(b))
	}
	if n > 0 {
		h.client, b = b[:n], b[n:]
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
	if h.version < a.min || h.version > a.max {
		return c.unsupported(h, a)
	}
	if h.key == kmsg.Produce.Int16() {
		return c.produce(h, a)
	}
	r := newReply(h, a)
	req := kmsg.RequestForKey(h.key)
	req.SetVersion(h.version)
	if req.IsFlexible() {
		var err error
		if h.body, err = skipTags(h.body); err != nil {
			return fmt.Errorf("request header of %s v%d: %w", a.name, h.version, err)
		}
	}
	elements, err := check(h.body, a.schema, h.version, req.IsFlexible())
	if err == nil {
		err = req.ReadFrom(h.body)
	}
	if err != nil {
		return fmt.Errorf("decode %s v%d: %w", a.name, h.version, err)
	}
	c.keep(int64(len(h.body) + elements*elementWeight))
	c.client = h.client
	if f, ok := req.(*kmsg.FetchRequest); ok {
		return c.fetch(f, r)
	}
	resp, err := a.handle(c.ctx, c, req)
	if err != nil {
		return fmt.Errorf("%s v%d: %w", a.name, h.version, err)
	}
	r.resp, r.code = resp, responseError(resp)
	c.send(r)
	return nil
}

// unsupported answers a version that is not served. ApiVersions gets the v0
// answer that lets the client choose another (KIP-511); for others the
// connection is closed, as in Kafka.
func (c *conn) unsupported(h header, a *api) error {
	if h.key != kmsg.ApiVersions.Int16() {
		return fmt.Errorf("%s v%d is not served (%d to %d)", a.name, h.version, a.min, a.max)
	}
	r := newReply(h, a)
	r.resp, r.code = c.s.apiVersionsResponse(0, errUnsupportedVersion), errUnsupportedVersion
	c.send(r)
	return nil
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
