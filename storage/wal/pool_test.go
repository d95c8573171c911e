package wal

import (
	"context"
	"testing"
	"time"
)

// A pool has one chunk more than is in use, mapped and touched, so that a Get does
// not wait for the kernel; never more than its limit.
func TestPoolIsAhead(t *testing.T) {
	const chunks = 16
	p := NewPool(chunks * ChunkSize)
	var held []*Chunk
	for i := range chunks {
		c, err := p.Get(context.Background(), 1)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		want := int64(min(i+2, chunks)) * ChunkSize
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
			inUse, mapped, _ := p.Usage()
			if mapped > want || inUse != int64(i+1)*ChunkSize {
				t.Fatalf("%d in use, %d mapped after %d chunks", inUse, mapped, i+1)
			}
			if mapped == want {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d mapped after %d chunks, want %d", mapped, i+1, want)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if c, err := p.Get(ctx, 1); err == nil {
		t.Fatalf("%d bytes beyond the limit", len(c.B))
	}
	for _, c := range held {
		c.Release()
	}
	p.Close()
	if inUse, mapped, _ := p.Usage(); inUse != 0 || mapped != 0 {
		t.Errorf("closed pool: %d in use, %d mapped", inUse, mapped)
	}
}

// A small pool maps what is asked for.
func TestSmallPoolIsNotAhead(t *testing.T) {
	p := NewPool(4 * ChunkSize)
	c, err := p.Get(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	if _, mapped, _ := p.Usage(); mapped != ChunkSize {
		t.Errorf("%d mapped", mapped)
	}
	c.Release()
	p.Close()
}
