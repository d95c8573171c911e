package broker

import (
	"testing"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// What an answer has lies below the high watermark that it tells, also when more becomes durable while it is read.
func TestReadIsBelowItsHighWatermark(t *testing.T) {
	d := newDiskBroker(t, 1, metadata.TopicConfig{})
	p := d.parts[0]
	p.bound = true
	const records = 3000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range records {
			d.write(p)
		}
	}()
	defer func() { <-done }()
	for at := int64(0); at < records; {
		r := p.Read(t.Context(), ReadOptions{Offset: at, MaxBytes: 1 << 20, MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		for _, b := range r.Data {
			for len(b) > 0 {
				h, err := batch.Parse(b)
				if err != nil {
					t.Fatal(err)
				}
				b, at = b[h.Size():], h.LastOffset()+1
			}
		}
		if at > r.HighWatermark || r.LastStable != r.HighWatermark {
			t.Fatalf("an answer goes to offset %d, its high watermark is %d and its last stable offset %d", at, r.HighWatermark, r.LastStable)
		}
		if r.Release != nil {
			r.Release()
		}
	}
}
