package kafka

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// kmsgOf is the same answer for kmsg's encoder.
func kmsgOf(a *fetchAnswer) *kmsg.FetchResponse {
	r := kmsg.NewPtrFetchResponse()
	r.Version, r.ErrorCode, r.SessionID = a.version, a.errorCode, a.sessionID
	for _, t := range a.topics {
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic, rt.TopicID = t.name, t.id
		for _, p := range t.partitions {
			rp := kmsg.NewFetchResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.partition, p.errorCode
			rp.HighWatermark, rp.LastStableOffset, rp.LogStartOffset = p.res.HighWatermark, p.res.LastStable, p.res.LogStart
			rp.PreferredReadReplica = -1
			if p.res.Aborted != nil {
				rp.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
			}
			for _, x := range p.res.Aborted {
				at := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
				at.ProducerID, at.FirstOffset = x.ProducerID, x.FirstOffset
				rp.AbortedTransactions = append(rp.AbortedTransactions, at)
			}
			rp.RecordBatches = bytes.Join(p.res.Data, nil)
			if rp.RecordBatches == nil {
				rp.RecordBatches = []byte{}
			}
			if d := p.res.Diverging; d != nil {
				rp.DivergingEpoch.Epoch, rp.DivergingEpoch.EndOffset = d.Epoch, d.EndOffset
			}
			rt.Partitions = append(rt.Partitions, rp)
		}
		r.Topics = append(r.Topics, rt)
	}
	return r
}

func randomAnswer(rng *rand.Rand, version int16) *fetchAnswer {
	a := &fetchAnswer{version: version, corr: rng.Uint32(), errorCode: int16(rng.Uint32()), sessionID: rng.Int32()}
	for range rng.IntN(4) {
		t := fetchAnswerTopic{name: string(make([]byte, rng.IntN(200))), id: ids.TopicID{byte(rng.Uint32()), 15: byte(rng.Uint32())}}
		for range rng.IntN(5) {
			p := fetchAnswerPartition{partition: rng.Int32(), errorCode: int16(rng.Uint32())}
			p.res = broker.ReadResult{HighWatermark: rng.Int64(), LastStable: -1, LogStart: rng.Int64()}
			for range rng.IntN(3) * rng.IntN(100) {
				p.res.Aborted = append(p.res.Aborted, broker.AbortedTxn{ProducerID: rng.Int64(), FirstOffset: rng.Int64()})
			}
			for range rng.IntN(3) {
				d := make([]byte, rng.IntN(300))
				d = append(d, byte(rng.Uint32()))
				p.res.Data = append(p.res.Data, d)
			}
			if rng.IntN(3) == 0 {
				p.res.Diverging = &broker.EpochEnd{Epoch: rng.Int32(), EndOffset: rng.Int64()}
			}
			t.partitions = append(t.partitions, p)
		}
		a.topics = append(a.topics, t)
	}
	return a
}

// Our encoder, which leaves the records out, gives what kmsg's gives, and does
// not copy the records.
func TestFetchEncoderEqualsKmsg(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for version := int16(4); version <= 18; version++ {
		for range 200 {
			a := randomAnswer(rng, version)
			bufs := a.encode()
			theirs := kmsgOf(a)
			want := binary.BigEndian.AppendUint32(make([]byte, 4), a.corr)
			if theirs.IsFlexible() {
				want = append(want, 0)
			}
			want = theirs.AppendTo(want)
			binary.BigEndian.PutUint32(want, uint32(len(want)-4))
			if got := bytes.Join(bufs, nil); !bytes.Equal(got, want) {
				t.Fatalf("v%d:\n got %x\nwant %x\nof %+v", version, got, want, a)
			}
			checkNotCopied(t, a, bufs)
		}
	}
}

func checkNotCopied(t *testing.T, a *fetchAnswer, bufs net.Buffers) {
	t.Helper()
	i := 0
	for _, topic := range a.topics {
		for _, p := range topic.partitions {
			for _, d := range p.res.Data {
				for i < len(bufs) && &bufs[i][0] != &d[0] {
					i++
				}
				if i == len(bufs) {
					t.Fatal("record bytes are not among the buffers")
				}
			}
		}
	}
}
