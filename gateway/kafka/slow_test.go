package kafka

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// withBuffers makes a topic whose partitions share n buffers for reads, with
// batches of size bytes in each partition.
func (h *harness) withBuffers(n int, partitions int32, batches, size int) *broker.Topic {
	topic := h.b.topic("logs", partitions)
	buffers := make(chan struct{}, n)
	records := batchOf(1, size)
	for p := range partitions {
		l := h.b.log(topic.ID, p)
		l.buffers = buffers
		for range batches {
			l.Produce(context.Background(), records, nil, func(broker.Produced) {})
		}
	}
	return topic
}

// A request for more partitions than there are buffers gets what they hold: it
// does not wait for ever for the buffers that it has itself.
func TestFetchOfMoreThanTheBuffers(t *testing.T) {
	h := serve(t, Limits{})
	topic := h.withBuffers(3, 10, 1, 100)
	var parts []*fetchPart
	for p := range int32(10) {
		parts = append(parts, want(topic, p, 0))
	}
	for range 3 {
		resp := ask[*kmsg.FetchResponse](h.dial(), fetchReq(12, time.Minute, parts...))
		got := 0
		for _, rt := range resp.Topics {
			for _, rp := range rt.Partitions {
				wantCode(t, "partition", rp.ErrorCode, nil)
				if len(rp.RecordBatches) > 0 {
					got++
				}
			}
		}
		if got != 3 {
			t.Errorf("%d partitions with records", got)
		}
	}
}

// A client that holds all buffers with an answer it does not take is cut off,
// and the others, who meanwhile get empty answers, go on. So is one that takes
// its answer, but too slowly.
func TestSlowReaderDoesNotStarve(t *testing.T) {
	for name, sip := range map[string]int{"stuck": 0, "slow": 1 << 10} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, Limits{Write: time.Second, MinProgress: 64 << 20})
			topic := h.withBuffers(1, 1, 20, 900<<10)
			all := want(topic, 0, 0)
			all.maxBytes = 50 << 20
			hog := h.dial()
			_ = hog.nc.(*net.TCPConn).SetReadBuffer(4096)
			hog.send(frameOf(fetchReq(12, 0, all), 1))
			l := h.b.log(topic.ID, 0)
			for l.open.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				b := make([]byte, sip)
				for sip > 0 {
					if _, err := hog.nc.Read(b); err != nil {
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}()
			other := h.dial()
			var served int
			for range 100 {
				resp := ask[*kmsg.FetchResponse](other, fetchReq(12, 0, want(topic, 0, 0)))
				if served = len(resp.Topics[0].Partitions[0].RecordBatches); served > 0 {
					break
				}
			}
			if served == 0 {
				t.Error("the other client got nothing")
			}
			hog.nc.Close()
			<-ended
		})
	}
}

// A client that takes a large answer steadily, in more time than Limits.Write,
// gets all of it.
func TestSteadyReaderIsServed(t *testing.T) {
	h := serve(t, Limits{Write: 500 * time.Millisecond, MinProgress: 16 << 10})
	topic := h.withBuffers(1, 1, 20, 900<<10)
	all := want(topic, 0, 0)
	all.maxBytes = 50 << 20
	w := h.dial()
	_ = w.nc.(*net.TCPConn).SetReadBuffer(128 << 10)
	w.send(frameOf(fetchReq(12, 0, all), 1))
	n, b := 0, make([]byte, 256<<10)
	for n < 20*900<<10 {
		k, err := io.ReadAtLeast(w.nc, b, 1)
		if n += k; err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		time.Sleep(time.Duration(k) * 100 * time.Nanosecond) // 10 MB/s
	}
}
