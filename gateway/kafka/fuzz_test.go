package kafka

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fuzzed are the frames that the fuzzer begins with: what clients send.
func fuzzed() [][]byte {
	var out [][]byte
	rng := rand.New(rand.NewPCG(5, 6))
	for key, a := range NewServer(Options{}).apis {
		for v := a.min; v <= a.max; v++ {
			req := kmsg.RequestForKey(key)
			req.SetVersion(v)
			if p, ok := req.(*kmsg.ProduceRequest); ok {
				rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
				rt.Topic, rp.Records, p.Acks = "logs", batchOf(2, 10), -1
				rt.TopicID = [16]byte{15: 1}
				rt.Partitions = append(rt.Partitions, rp)
				p.Topics = append(p.Topics, rt)
			} else {
				fill(rng, reflect.ValueOf(req).Elem(), 0)
			}
			if f, ok := req.(*kmsg.FetchRequest); ok {
				f.MaxWaitMillis = 0
			}
			out = append(out, frameOf(req, int32(v)))
		}
	}
	return out
}

// pipe is one side of a connection whose other side has sent everything already.
type pipe struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (p *pipe) Read(b []byte) (int, error)       { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error)      { return p.out.Write(b) }
func (p *pipe) Close() error                     { return nil }
func (p *pipe) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

// FuzzConnection: whatever a client sends, the server does not panic, answers
// whole frames, and gives back all it held.
func FuzzConnection(f *testing.F) {
	frames := fuzzed()
	for _, frame := range captured(f) {
		f.Add(frame)
	}
	for i, frame := range frames {
		f.Add(frame)
		f.Add(append(append([]byte(nil), frame...), frames[(i+1)%len(frames)]...))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 64<<10 {
			return
		}
		b := newMemBroker(t)
		captureTopics(b)
		var log bytes.Buffer
		s := NewServer(Options{Broker: b, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})), Limits: Limits{MaxFrame: 1 << 20, MaxControl: 1 << 20, MaxInFlight: 1 << 25}})
		p := &pipe{in: bytes.NewReader(sent)}
		c := newConn(s, p)
		stop := time.AfterFunc(5*time.Millisecond, s.cancel) // ends long polls
		defer stop.Stop()
		defer s.cancel()
		c.run()
		if log.Len() > 0 {
			t.Error(log.String()) // a panic
		}
		if !s.inFlight.TryAcquire(s.limits.MaxInFlight) {
			t.Error("bytes in flight are not given back")
		}
		s.sessions.close()
		for tp, l := range b.logs {
			if l.open.Load() != 0 || len(l.watchers) != 0 {
				t.Errorf("%s: results or watchers are left", tp)
			}
		}
		checkFrames(t, p.out.Bytes())
	})
}

func checkFrames(t *testing.T, b []byte) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 8 || uint64(len(b)-4) < uint64(binary.BigEndian.Uint32(b)) {
			t.Fatalf("the last answer is cut off: %d bytes", len(b))
		}
		b = b[4+binary.BigEndian.Uint32(b):]
	}
}
