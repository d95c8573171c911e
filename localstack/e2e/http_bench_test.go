package e2e

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// BenchmarkHTTPProduce stores 1,000 records of 200 bytes in each round: as one
// NDJSON body, as requests of one record from 20 clients, without and with a
// key, and through the Kafka port of the same node.
func BenchmarkHTTPProduce(b *testing.B) {
	const records, clients, size = 1000, 20, 200
	n := NewNode(b, NodeOptions{})
	if err := n.CLI(io.Discard, "topic", "create", "bench", "-p", "1"); err != nil {
		b.Fatal(err)
	}
	line := `"` + strings.Repeat("x", size-2) + `"`
	body := strings.Repeat(line+"\n", records)
	const path = "/api/v1/topics/bench/messages?report=errors"
	post := func(body string, headers ...string) error {
		status, answer, err := httpPost(b.Context(), n, path, strings.NewReader(body), headers...)
		if err == nil && status != 200 {
			err = fmt.Errorf("%d %s", status, answer)
		}
		return err
	}
	run := func(name string, round func() error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(records * size)
			for b.Loop() {
				if err := round(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*records/b.Elapsed().Seconds(), "records/s")
		})
	}
	var key atomic.Int64
	single := func(keyed bool) func() error {
		return func() error {
			var g group
			for range clients {
				g.Go(func() error {
					for range records / clients {
						var headers []string
						if keyed {
							headers = []string{"Idempotency-Key", fmt.Sprint("bench-", key.Add(1))}
						}
						if err := post(line, headers...); err != nil {
							return err
						}
					}
					return nil
				})
			}
			return g.Wait()
		}
	}
	run("ndjson", func() error { return post(body, "Content-Type", "application/x-ndjson") })
	run("single", single(false))
	run("keyed", single(true))
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka), kgo.DefaultProduceTopic("bench"))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	run("kafka", func() error {
		recs := make([]*kgo.Record, records)
		for i := range recs {
			recs[i] = kgo.StringRecord(line)
		}
		return cl.ProduceSync(b.Context(), recs...).FirstErr()
	})
}
