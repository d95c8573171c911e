package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/segmentio/kafka-go"
)

func segmentioProduce(ctx context.Context, o produceOptions) error {
	codec, ok := map[string]kafka.Compression{"none": 0, "gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd}[o.codec]
	if !ok {
		return errCodec
	}
	w := &kafka.Writer{Addr: kafka.TCP(o.brokers), Topic: o.topic, RequiredAcks: kafka.RequireAll, Compression: codec, BatchSize: 1000, BatchTimeout: 20 * time.Millisecond}
	for at := o.first; at < o.first+o.count; {
		var msgs []kafka.Message
		for ; at < o.first+o.count && len(msgs) < 5000; at++ {
			m := makeRecord(at)
			msg := kafka.Message{Key: m.key, Value: m.value}
			for _, h := range m.headers {
				msg.Headers = append(msg.Headers, kafka.Header{Key: h.key, Value: h.value})
			}
			msgs = append(msgs, msg)
		}
		if err := w.WriteMessages(ctx, msgs...); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	return w.Close()
}

func segmentioConsume(ctx context.Context, o consumeOptions, out *printer) error {
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{o.brokers}, GroupID: o.group, Topic: o.topic, StartOffset: kafka.FirstOffset, MaxBytes: 8 << 20,
		MaxWait: 200 * time.Millisecond, SessionTimeout: o.session, HeartbeatInterval: time.Second, RebalanceTimeout: o.session,
		ErrorLogger: log.New(os.Stderr, "kafka-go ", log.Ltime)})
	var pending []kafka.Message
	commit := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := r.CommitMessages(ctx, pending...)
		pending = pending[:0]
		return err
	}
	last := time.Now()
	for ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		m, err := r.FetchMessage(wait)
		cancel()
		if err == nil {
			rec := read{int32(m.Partition), m.Offset, record{key: m.Key, value: m.Value}}
			for _, h := range m.Headers {
				rec.headers = append(rec.headers, header{h.Key, h.Value})
			}
			if err := out.records(rec); err != nil {
				return err
			}
			pending = append(pending, m)
		} else if !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return err
		}
		if time.Since(last) < 100*time.Millisecond {
			continue
		}
		if err := commit(); err != nil {
			fmt.Fprintln(os.Stderr, "commit:", err) // of a generation that is over
		}
		last = time.Now()
	}
	return errors.Join(commit(), r.Close())
}
