package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

func saramaProduce(_ context.Context, o produceOptions) error {
	codec, ok := map[string]sarama.CompressionCodec{"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
		"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD}[o.codec]
	if !ok {
		return errCodec
	}
	c := sarama.NewConfig()
	c.Version = sarama.MaxVersion
	c.Producer.Compression = codec
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	if o.idempotent {
		c.Producer.Idempotent = true
		c.Net.MaxOpenRequests = 1
	}
	p, err := sarama.NewAsyncProducer([]string{o.brokers}, c)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var errs []error
	acked := 0
	wg.Go(func() {
		for range p.Successes() {
			acked++
		}
	})
	wg.Go(func() {
		for e := range p.Errors() {
			errs = append(errs, e)
		}
	})
	for i := o.first; i < o.first+o.count; i++ {
		m := makeRecord(i)
		msg := &sarama.ProducerMessage{Topic: o.topic}
		if m.key != nil {
			msg.Key = sarama.ByteEncoder(m.key)
		}
		if m.value != nil {
			msg.Value = sarama.ByteEncoder(m.value)
		}
		for _, h := range m.headers {
			msg.Headers = append(msg.Headers, sarama.RecordHeader{Key: []byte(h.key), Value: h.value})
		}
		p.Input() <- msg
	}
	p.AsyncClose()
	wg.Wait()
	if acked != o.count {
		return fmt.Errorf("%d of %d acknowledged: %w", acked, o.count, errors.Join(errs[:min(3, len(errs))]...))
	}
	return nil
}

// saramaMember prints what it claims.
type saramaMember struct{ out *printer }

func (saramaMember) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (saramaMember) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (m saramaMember) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case msg, ok := <-claim.Messages():
			if !ok {
				return nil
			}
			r := read{msg.Partition, msg.Offset, record{key: msg.Key, value: msg.Value}}
			for _, h := range msg.Headers {
				r.headers = append(r.headers, header{string(h.Key), h.Value})
			}
			if err := m.out.records(r); err != nil {
				return err
			}
			s.MarkMessage(msg, "")
		case <-s.Context().Done(): // else a rebalance waits for the messages that are there
			return nil
		}
	}
}

func saramaConsume(ctx context.Context, o consumeOptions, out *printer) error {
	sarama.Logger = log.New(os.Stderr, "sarama ", log.Ltime)
	c := sarama.NewConfig()
	c.Version = sarama.MaxVersion
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Offsets.AutoCommit.Interval = 100 * time.Millisecond
	c.Consumer.Group.Session.Timeout = o.session
	c.Consumer.Group.Heartbeat.Interval = time.Second
	g, err := sarama.NewConsumerGroup([]string{o.brokers}, o.group, c)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := g.Consume(ctx, []string{o.topic}, saramaMember{out}); err != nil {
			return errors.Join(err, g.Close())
		}
	}
	return g.Close()
}
